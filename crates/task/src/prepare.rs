//! [`Preprocessor`]: messages to what a local model takes, token ids and image tiles.

use std::sync::Arc;

use image::DynamicImage;
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use thiserror::Error;
use vgen_core::{Content, Fault, ImageRef, Message, Part, PixelTiles, Role};

use crate::chat::{ChatError, ChatTemplate, template_messages};
use crate::image::{
    ImageError, ImageFetcher, ImageLimits, KeptImages, MllamaImageProcessor, ProcessorError, image_name,
};
use crate::tokens::{TokenIds, Tokenizer, TokenizerError};

/// Why messages can't be prepared for a model, or a model's files can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// A model file that isn't the JSON it should be.
    #[error("{file} can't be read: {source}")]
    Json {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An image that can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image processor that can't be used.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// A chat template that can't be used, or refuses the messages.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A tokenizer that can't be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The prompt has another number of image tokens than of images.
    #[error("the prompt has {tokens} image tokens for {images} images")]
    ImageTokens {
        /// Image tokens of the prompt.
        tokens: usize,
        /// Images of the messages.
        images: usize,
    },
    /// A system message with an image.
    #[error("a system message has an image")]
    SystemImage,
    /// An image for a model that reads text only.
    #[error("the row has an image, but the model reads text only")]
    TextOnly,
    /// A model that sees images without a description of how it wants them.
    #[error("the checkpoint has no preprocessor_config.json")]
    NoProcessor,
    /// Messages without any text or image.
    #[error("the messages are empty")]
    Empty,
}

impl From<PrepareError> for Fault {
    fn from(error: PrepareError) -> Self {
        let message = error.to_string();
        match error {
            PrepareError::Json { .. } => {
                Fault::stop("model.config", message).with_hint("download the checkpoint's files again")
            }
            PrepareError::Image(error) => error.into(),
            PrepareError::Processor(error) => error.into(),
            PrepareError::Chat(error) => error.into(),
            PrepareError::Tokenizer(error) => error.into(),
            PrepareError::ImageTokens { .. } => Fault::row("prompt.image_tokens", message)
                .with_hint("the chat template drops or repeats images; use the one that the model was published with"),
            PrepareError::SystemImage => {
                Fault::row("prompt.system_image", message).with_hint("put the image in the user's message")
            }
            PrepareError::TextOnly => Fault::row("prompt.text_only", message)
                .with_hint("take a Llama-3.2-Vision checkpoint, or leave the image out"),
            PrepareError::NoProcessor => {
                Fault::stop("model.config", message).with_hint("download the checkpoint's files again")
            }
            PrepareError::Empty => Fault::row("prompt.empty", message).with_hint("give an instruction or an image"),
        }
    }
}

/// The contents of a checkpoint's files, as far as its input needs them.
#[derive(Clone, Copy, Debug)]
pub struct ModelFiles<'a> {
    /// `config.json`
    pub config: &'a str,
    /// `preprocessor_config.json`; a model that reads text only has none.
    pub preprocessor_config: Option<&'a str>,
    /// `tokenizer.json`
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, if there is one.
    pub tokenizer_config: Option<&'a str>,
    /// `chat_template.json` or `chat_template.jinja`, if there is one.
    pub chat_template: Option<&'a str>,
}

/// How messages become a prompt.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Bounds on images.
    pub limits: ImageLimits,
    /// Where images from the network are kept for others; `None` keeps none.
    pub kept: Option<Arc<KeptImages>>,
    /// Which of several chat templates; `None` takes the default one.
    pub template_name: Option<String>,
    /// The date in the prompt of chats that have a system message or no image, e.g. `26 Jul 2024`. `None` takes the
    /// day's, so that the same row has another prompt tomorrow.
    pub date_string: Option<String>,
    /// Further names for the chat template, such as `tools`.
    pub template_variables: Map<String, Json>,
}

impl Default for PrepareOptions {
    /// Default limits and template, the template's own fixed date, no further names.
    fn default() -> Self {
        Self {
            limits: ImageLimits::default(),
            kept: None,
            template_name: None,
            date_string: Some("26 Jul 2024".to_owned()),
            template_variables: Map::new(),
        }
    }
}

/// A prompt as a local model takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Token ids; each image is one token.
    pub ids: Vec<u32>,
    /// The images in order of their tokens.
    pub images: Vec<Arc<PixelTiles>>,
    /// Where in `ids` the images' tokens are.
    pub image_positions: Vec<usize>,
    /// The prompt in text, with special tokens.
    pub text: String,
}

/// `config.json` as far as tokens go: of a model that sees images, or of a plain Llama.
#[derive(Deserialize)]
#[serde(untagged)]
enum ModelConfig {
    Vision {
        /// The first id after the vocabulary unless given.
        #[serde(alias = "image_token_id")]
        image_token_index: Option<u32>,
        text_config: TextConfig,
    },
    Text(TextConfig),
}

#[derive(Deserialize)]
struct TextConfig {
    vocab_size: usize,
    bos_token_id: Option<u32>,
}

/// `tokenizer_config.json` as far as it is needed here.
#[derive(Deserialize, Default)]
struct TokenizerConfig {
    /// Whether a text begins with the beginning-of-text token; where it says nothing, `tokenizer.json` decides.
    add_bos_token: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Json>,
}

impl TokenizerConfig {
    /// The text of a token: a text, or an object that holds it.
    fn token(&self, name: &str) -> Option<&str> {
        let token = self.rest.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }
}

/// A prompt's text and token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The text, with special tokens.
    pub text: String,
    /// The ids.
    pub ids: Vec<u32>,
}

/// Prepares prompts for one checkpoint. Shared by preparation threads.
#[derive(Debug)]
pub struct Preprocessor {
    chat: Option<ChatTemplate>,
    tokenizer: Tokenizer,
    /// `None` for a model that reads text only.
    processor: Option<MllamaImageProcessor>,
    /// Whether a raw prompt begins with the beginning-of-text token.
    raw_bos: bool,
    /// What `tokenizer_config.json` calls the end-of-sequence token.
    eos: Option<u32>,
    fetcher: ImageFetcher,
    variables: Map<String, Json>,
}

impl Preprocessor {
    /// Sets up a checkpoint's input from its files' contents. Without a chat template prompts are raw: images, then
    /// text, as base checkpoints were trained.
    ///
    /// # Errors
    /// [`PrepareError`] for files that can't be read, don't belong together or ask for what isn't supported.
    pub fn from_files(files: &ModelFiles<'_>, options: PrepareOptions) -> Result<Self, PrepareError> {
        let json_error = |file| move |source| PrepareError::Json { file, source };
        let config: ModelConfig = serde_json::from_str(files.config).map_err(json_error("config.json"))?;
        let settings: TokenizerConfig = match files.tokenizer_config {
            Some(text) => serde_json::from_str(text).map_err(json_error("tokenizer_config.json"))?,
            None => TokenizerConfig::default(),
        };
        let (image, TextConfig { vocab_size, bos_token_id: bos }) = match config {
            ModelConfig::Vision { image_token_index, text_config } => {
                let after = u32::try_from(text_config.vocab_size).unwrap_or(u32::MAX);
                (Some(image_token_index.unwrap_or(after)), text_config)
            }
            ModelConfig::Text(text_config) => (None, text_config),
        };
        let tokenizer = Tokenizer::from_json(files.tokenizer, TokenIds { vocab_size, image, bos })?;
        let processor = match (image, files.preprocessor_config) {
            (Some(_), Some(text)) => Some(MllamaImageProcessor::from_json(text, files.config)?),
            (Some(_), None) => return Err(PrepareError::NoProcessor),
            (None, _) => None,
        };
        let name = options.template_name.as_deref();
        let mut chat = ChatTemplate::from_files(files.chat_template, files.tokenizer_config, name)?;
        if let Some(chat) = &mut chat {
            chat.set_global("bos_token", tokenizer.bos_text());
            for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
                if let Some(token) = settings.token(name) {
                    chat.set_global(name, token);
                }
            }
        }
        // Models that see images were trained on raw prompts with it.
        let raw_bos = image.is_some() || settings.add_bos_token.unwrap_or_else(|| tokenizer.adds_bos());
        let eos = settings.token("eos_token").and_then(|token| tokenizer.token_to_id(token));
        let mut variables = options.template_variables;
        if let Some(date) = options.date_string {
            variables.entry("date_string").or_insert(Json::String(date));
        }
        let fetcher = ImageFetcher::new(options.limits).keeping(options.kept);
        Ok(Self { chat, tokenizer, processor, raw_bos, eos, fetcher, variables })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The end-of-sequence token by `tokenizer_config.json`, for models whose other files don't name one.
    pub fn eos_token(&self) -> Option<u32> {
        self.eos
    }

    /// The image processor; `None` for a model that reads text only.
    pub fn image_processor(&self) -> Option<&MllamaImageProcessor> {
        self.processor.as_ref()
    }

    /// Whether the checkpoint has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// The prompt of `messages`: ids, and the images fetched, decoded and cut into tiles. Blocks.
    ///
    /// # Errors
    /// [`PrepareError`]; all that this raises concern one row.
    pub fn prepare(&self, messages: &[Message]) -> Result<Prepared, PrepareError> {
        self.prepare_unless(messages, &|| false)
    }

    /// As [`Preprocessor::prepare`], until `given_up` says that nobody waits for the prompt any more: it is asked before
    /// each image, and while one is fetched from the network.
    ///
    /// # Errors
    /// Also [`ImageError::GivenUp`].
    pub fn prepare_unless(&self, messages: &[Message], given_up: &dyn Fn() -> bool) -> Result<Prepared, PrepareError> {
        // The prompt first: it is cheap, and images are not fetched for a row that can't be answered.
        let prompt = self.encode_messages(messages)?;
        let image_token = self.tokenizer.ids().image;
        let is_image = |&(_, &id): &(usize, &u32)| Some(id) == image_token;
        let image_positions: Vec<usize> =
            prompt.ids.iter().enumerate().filter(is_image).map(|(position, _)| position).collect();
        let images: Vec<&ImageRef> = messages.iter().flat_map(Message::images).collect();
        if image_positions.len() != images.len() {
            return Err(PrepareError::ImageTokens { tokens: image_positions.len(), images: images.len() });
        }
        let images = images
            .into_iter()
            .map(|image| {
                if given_up() {
                    return Err(ImageError::GivenUp { name: image_name(image) }.into());
                }
                self.process_image_unless(image, given_up).map(Arc::new)
            })
            .collect::<Result<_, PrepareError>>()?;
        Ok(Prepared { ids: prompt.ids, images, image_positions, text: prompt.text })
    }

    /// The prompt of `messages` without its images' pixels.
    ///
    /// # Errors
    /// [`PrepareError::Empty`], [`PrepareError::TextOnly`], [`PrepareError::SystemImage`], [`PrepareError::Chat`],
    /// [`PrepareError::Tokenizer`].
    pub fn encode_messages(&self, messages: &[Message]) -> Result<EncodedPrompt, PrepareError> {
        let says_something = |message: &Message| match &message.content {
            Content::Text(text) => !text.is_empty(),
            Content::Parts(parts) => parts.iter().any(|part| !matches!(part, Part::Text(text) if text.is_empty())),
        };
        if !messages.iter().any(says_something) {
            return Err(PrepareError::Empty);
        }
        if self.processor.is_none() && messages.iter().any(|message| message.images().next().is_some()) {
            return Err(PrepareError::TextOnly);
        }
        if messages.iter().any(|message| message.role == Role::System && message.images().next().is_some()) {
            return Err(PrepareError::SystemImage);
        }
        match &self.chat {
            Some(_) => self.encode_chat(&template_messages(messages), &Map::new()),
            None => self.encode_without_template(messages),
        }
    }

    /// The prompt of `messages` in the form of transformers, by the chat template; `variables` come on top of those of
    /// the options. Ends with the beginning of an answer unless `add_generation_prompt` is `false` there. Text from
    /// the messages and variables never becomes a special token.
    ///
    /// # Errors
    /// [`PrepareError::Chat`], also without a chat template, and [`PrepareError::Tokenizer`].
    pub fn encode_chat(&self, messages: &Json, variables: &Map<String, Json>) -> Result<EncodedPrompt, PrepareError> {
        let Some(chat) = &self.chat else {
            return Err(ChatError::Failed("the checkpoint has none".to_owned()).into());
        };
        let mut all = self.variables.clone();
        all.entry("add_generation_prompt").or_insert(Json::Bool(true));
        all.extend(variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut texts = Vec::new();
        collect_texts(messages, &mut texts);
        all.values().for_each(|value| collect_texts(value, &mut texts));
        let fence = self.tokenizer.fence(texts);
        let rendered = chat.render(messages, &all, &|text| self.tokenizer.fenced(text, fence))?;
        let mut ids = self.tokenizer.encode_fenced(&rendered, fence)?;
        let mut text = fence.remove(&rendered);
        // As transformers, which adds nothing to what the template of a text model says.
        if let (Some(bos), Some(_)) = (self.tokenizer.ids().bos, &self.processor)
            && !ids.contains(&bos)
        {
            ids.insert(0, bos);
            text.insert_str(0, self.tokenizer.bos_text());
        }
        Ok(EncodedPrompt { text, ids })
    }

    /// Image tokens, beginning of text, then the messages' texts, each message a paragraph.
    fn encode_without_template(&self, messages: &[Message]) -> Result<EncodedPrompt, PrepareError> {
        let images = messages.iter().flat_map(Message::images).count();
        let paragraphs: Vec<String> =
            messages.iter().map(Message::plain_text).filter(|text| !text.is_empty()).collect();
        let said = paragraphs.join("\n\n");
        let mut ids: Vec<u32> = self.tokenizer.ids().image.into_iter().flat_map(|id| vec![id; images]).collect();
        let bos = self.tokenizer.ids().bos.filter(|_| self.raw_bos);
        ids.extend(bos);
        ids.extend(self.tokenizer.encode_plain(&said)?);
        let bos = if bos.is_some() { self.tokenizer.bos_text() } else { "" };
        let text = self.tokenizer.image_text().repeat(images) + bos + &said;
        Ok(EncodedPrompt { text, ids })
    }

    /// Fetches, decodes and cuts one image. Blocks.
    ///
    /// # Errors
    /// [`PrepareError::Image`], [`PrepareError::TextOnly`].
    pub fn process_image(&self, image: &ImageRef) -> Result<PixelTiles, PrepareError> {
        self.process_image_unless(image, &|| false)
    }

    fn process_image_unless(&self, image: &ImageRef, given_up: &dyn Fn() -> bool) -> Result<PixelTiles, PrepareError> {
        let processor = self.processor.as_ref().ok_or(PrepareError::TextOnly)?;
        let bytes = self.fetcher.fetch_unless(image, given_up)?;
        let name = image_name(image);
        Ok(processor.process_file(&bytes, &name, self.fetcher.limits())?)
    }

    /// Cuts one image that is in memory, taken as upright.
    ///
    /// # Errors
    /// [`PrepareError::TextOnly`], [`ImageError::UnsupportedFormat`] for floating-point pixels, [`ImageError::Empty`]
    /// without pixels.
    pub fn process_dynamic_image(&self, image: DynamicImage) -> Result<PixelTiles, PrepareError> {
        let processor = self.processor.as_ref().ok_or(PrepareError::TextOnly)?;
        Ok(processor.process_dynamic(image, "in memory")?)
    }
}

fn collect_texts<'a>(json: &'a Json, texts: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => texts.push(text),
        Json::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Json::Object(entries) => {
            for (key, value) in entries {
                texts.push(key);
                collect_texts(value, texts);
            }
        }
        _ => {}
    }
}
