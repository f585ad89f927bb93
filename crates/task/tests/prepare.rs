//! Preparation of prompts where something is wrong: with the checkpoint's files, the messages or the images.

// The fixtures are part of the repository: what is wrong with them is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use vgen_core::{Content, Fault, FaultClass, ImageRef, Message, Part, Role};
use vgen_task::prepare::{ModelFiles, PrepareError, PrepareOptions, Preprocessor};

fn checkpoint(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/mllama/tiny");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// A preprocessor for `tiny` with a changed `config.json` and chat template.
fn with(change: impl Fn(String) -> String, chat_template: Option<&str>) -> Result<Preprocessor, PrepareError> {
    let (config, tokenizer) = (change(checkpoint("config.json")), checkpoint("tokenizer.json"));
    let files = ModelFiles {
        config: &config,
        preprocessor_config: Some(&checkpoint("preprocessor_config.json")),
        tokenizer: tokenizer.as_bytes(),
        tokenizer_config: None,
        chat_template,
    };
    Preprocessor::from_files(&files, PrepareOptions::default())
}

fn tiny() -> Preprocessor {
    with(|config| config, Some(&checkpoint("chat_template.json"))).unwrap()
}

fn image(name: &str) -> ImageRef {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name);
    ImageRef::Path(path)
}

fn ask(parts: Vec<Part>) -> [Message; 1] {
    [Message { role: Role::User, content: Content::Parts(parts) }]
}

fn fault(result: Result<impl Sized, PrepareError>) -> Fault {
    result.err().expect("an error").into()
}

#[test]
fn a_tokenizer_of_another_model() {
    let cases = [
        ("\"vocab_size\": 544", "\"vocab_size\": 128256", "128256"),
        ("\"vocab_size\": 544", "\"vocab_size\": 500", "545 tokens, the model reads at most 508"),
        ("\"image_token_index\": 544", "\"image_token_index\": 7", "image token 7"),
        ("\"bos_token_id\": 512", "\"bos_token_id\": 3", "beginning-of-text token 3"),
    ];
    for (from, to, says) in cases {
        let change = |config: String| {
            assert!(config.contains(from), "{from}");
            config.replace(from, to)
        };
        let fault = fault(with(change, None));
        assert_eq!((fault.code.as_ref(), fault.class), ("tokenizer.mismatch", FaultClass::Stop), "{to}");
        assert!(fault.message.contains(says), "{}", fault.message);
    }
}

#[test]
fn image_tokens_and_images_disagree() {
    let deaf = with(|config| config, Some("{{ bos_token }}no image here")).unwrap();
    let fault = fault(deaf.prepare(&ask(vec![Part::Image(image("rgb.png"))])));
    assert_eq!((fault.code.as_ref(), fault.class), ("prompt.image_tokens", FaultClass::Row));
    assert_eq!(fault.message, "the prompt has 0 image tokens for 1 images");
}

#[test]
fn exactly_one_beginning_of_text() {
    let without = with(|config| config, Some("{{ messages[0].content }}")).unwrap();
    let prompt = without.encode_messages(&[Message::text(Role::User, "hi <|begin_of_text|>")]).unwrap();
    assert_eq!(prompt.ids[0], 512);
    assert_eq!(prompt.ids.iter().filter(|&&id| id == 512).count(), 1);
    assert_eq!(prompt.text, "<|begin_of_text|>hi <|begin_of_text|>");
}

#[test]
fn bad_messages_and_images_are_row_faults() {
    let tiny = tiny();
    let system = Message { role: Role::System, content: Content::Parts(vec![Part::Image(image("rgb.png"))]) };
    let cases: [(&[Message], &str); 6] = [
        (&[], "prompt.empty"),
        (&ask(vec![Part::Text(String::new())]), "prompt.empty"),
        (&[system, Message::text(Role::User, "q")], "prompt.system_image"),
        (&ask(vec![Part::Image(image("none.png"))]), "image.not_found"),
        (&ask(vec![Part::Image(image("README.md"))]), "image.unsupported_format"),
        (&ask(vec![Part::Text("q".into()), Part::Image(image("bomb.png"))]), "image.too_many_pixels"),
    ];
    for (messages, code) in cases {
        let fault = fault(tiny.prepare(messages));
        assert_eq!((fault.code.as_ref(), fault.class), (code, FaultClass::Row));
        assert!(fault.hint.is_some(), "{code}");
    }
}

#[test]
fn the_same_image_has_the_same_digest() {
    let tiny = tiny();
    let path = image("rgb.png");
    let ImageRef::Path(file) = &path else { unreachable!() };
    let bytes = ImageRef::Bytes { bytes: std::fs::read(file).unwrap().into(), name: None };
    let prepared =
        tiny.prepare(&ask(vec![Part::Image(path), Part::Image(bytes), Part::Image(image("gray.png"))])).unwrap();
    let [first, second, third] = &prepared.images[..] else { panic!("{} images", prepared.images.len()) };
    assert_eq!(first.digest, second.digest);
    assert_ne!(first.digest, third.digest);
}
