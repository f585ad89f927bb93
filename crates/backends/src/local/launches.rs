//! [`StepLaunches`]: the operations of a step that continues answers.

use vgen_mllama::TextConfig;

use super::plan::GATHERED;

/// Rows of a product where shapes are fixed.
pub(crate) const FIXED_ROWS: u64 = 64;

/// A step of the engine that only continues answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeStep {
    /// Attention over pages is one kernel.
    pub reads_pages: bool,
    /// Activations are of a half type.
    pub half: bool,
    /// Weights are in blocks of few bits, whose product takes and gives f32.
    pub quantised: bool,
    /// Shapes are filled up or cut.
    pub fixed_shapes: bool,
    /// Answers, each about an image.
    pub answers: u64,
    /// Tokens of each answer's text, and of its image.
    pub text: u64,
    /// Of its image.
    pub image: u64,
}

/// Operations that such a step launches, each way: what the tests measure on the portable path. Beyond the rows of a
/// product with fixed shapes, and beyond the keys that are gathered at a time, their number grows with the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLaunches {
    /// Copies of ids, positions and places to the device, and what is made of them.
    pub begin: u64,
    /// Of a self-attention layer.
    pub self_layer: u64,
    /// Of a cross-attention layer.
    pub cross_layer: u64,
    /// Norm, output head and the choice of the tokens, if each is the highest.
    pub end: u64,
}

impl StepLaunches {
    /// Of a step.
    pub fn new(step: DecodeStep) -> Self {
        let half = u64::from(step.half);
        let filled = u64::from(step.fixed_shapes && !step.answers.is_multiple_of(FIXED_ROWS));
        // Rows of a product that are computed at a time are joined.
        let product = match step.answers.div_ceil(FIXED_ROWS) {
            blocks @ 2.. if step.fixed_shapes => blocks + 1,
            _ => 1,
        };
        let groups = |keys: u64| {
            let width = if step.fixed_shapes { keys.max(64).next_power_of_two() } else { keys.next_multiple_of(64) };
            step.answers.div_ceil((GATHERED / width).max(1)).max(1)
        };
        // Lookup: keys, scores, scale, mask, softmax, values, sum; in a half type two conversions. Groups of rows select
        // their queries and are joined.
        let lookup = |groups: u64| match groups {
            1 => 7 + 2 * half,
            _ => groups * (8 + 2 * half) + 1,
        };
        let attention = |keys: u64| filled + if step.reads_pages { 1 } else { lookup(groups(keys)) };
        // Conversions of inputs that layers share, and of each output.
        let converted = if step.half && step.quantised { 1 } else { 0 };
        // Ids and their rows, cosines, sines, slots and their spread; tables of pages of texts and images, or what each
        // group of the lookup of texts is made of: slots, two for heads, a mask, and which rows (that of images is kept).
        let places = match (step.reads_pages, groups(step.text)) {
            (true, _) => 6,
            (false, 1) => 4,
            (false, groups) => 5 * groups,
        };
        let begin = 6 + places + filled + 2 * half;
        // norm, q, k, v, 2 rotations, 2 writes, o, sum; norm, gate, up, silu, product, down, sum
        let self_layer = 10 + 7 * product + 11 * converted + attention(step.text);
        // norm, q, norm, o, scale, sum; norm, gate, up, silu, product, down, scale, sum
        let cross_layer = 9 + 5 * product + 9 * converted + attention(step.image);
        // rows wanted (2), norm, head; highest: maximum, comparison, choice, minimum, 2 for finiteness, join
        Self { begin, self_layer, cross_layer, end: 10 + product + 2 * converted + 2 * filled + half }
    }

    /// All of a model's.
    pub fn total(&self, config: &TextConfig) -> u64 {
        let cross = config.cross_attention_layers.len() as u64;
        let selves = config.self_layers() as u64;
        self.begin + selves * self.self_layer + cross * self.cross_layer + self.end
    }
}
