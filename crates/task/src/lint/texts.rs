//! What does not belong into the text of a prompt.

/// What marks the place of an image in the prompts of some model.
const IMAGE_TAGS: [&str; 9] = [
    "<|image|>",
    "<image>",
    "<image_placeholder>",
    "<image_soft_token>",
    "<start_of_image>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|image_1|>",
    "[IMG]",
];
/// What separates the parts of a conversation for some model.
const SPECIAL_TOKENS: [&str; 13] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
];

/// The first image tag in a text.
pub(super) fn image_tag(text: &str) -> Option<&'static str> {
    first(text, &IMAGE_TAGS)
}

/// The first special token in a text.
pub(super) fn special_token(text: &str) -> Option<&'static str> {
    first(text, &SPECIAL_TOKENS)
}

fn first(text: &str, known: &[&'static str]) -> Option<&'static str> {
    // They are rare: one look for what they begin with spares most texts the others.
    if !text.contains(['<', '[']) {
        return None;
    }
    known.iter().copied().filter_map(|tag| Some((text.find(tag)?, tag))).min().map(|(_, tag)| tag)
}

/// The first name that a template has in single braces, as Python's format strings have it.
pub(super) fn single_braces<'a>(template: &str, names: impl IntoIterator<Item = &'a String>) -> Option<&'a String> {
    let place = |name: &str| {
        let single = |at: usize, length: usize| {
            !template[..at].ends_with(['{', '%', '#']) && !template[at + length..].starts_with('}')
        };
        let braced = format!("{{{name}}}");
        template.match_indices(&braced).map(|(at, _)| at).find(|at| single(*at, braced.len()))
    };
    names.into_iter().filter_map(|name| Some((place(name)?, name))).min().map(|(_, name)| name)
}
