//! [`Task`]: what to ask about a row, and what to make of the answer.

use vgen_core::{Fault, Response, Row, SamplingParams};
use vgen_task::{OpenAiBatch, Rendered, RowContext, TextGenerationWithImage};

/// What to ask about a row, and what to make of the answer.
pub trait Task: Send + Sync {
    /// How many answers to ask for, at least 1.
    fn num_generations(&self) -> u32 {
        1
    }

    /// The conversation that asks about a row.
    ///
    /// # Errors
    /// A fault of class `Row` if the row can't be asked about: a missing column, say.
    fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault>;

    /// A row's own sampling parameters and number of answers, where rows have such; `None` takes the run's.
    ///
    /// # Errors
    /// A fault of class `Row` if they can't be understood.
    fn own_sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<(SamplingParams, u32)>, Fault> {
        let _ = (row, run);
        Ok(None)
    }

    /// The output rows of an input row, which is empty if it couldn't be read; of a failed one too. `rendered` is
    /// `None` if it never came to that.
    fn output_rows(&self, row: &Row, rendered: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row>;
}

impl<T: Task + ?Sized> Task for Box<T> {
    fn num_generations(&self) -> u32 {
        (**self).num_generations()
    }

    fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        (**self).render(row, context)
    }

    fn own_sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<(SamplingParams, u32)>, Fault> {
        (**self).own_sampling(row, run)
    }

    fn output_rows(&self, row: &Row, rendered: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        (**self).output_rows(row, rendered, result)
    }
}

impl Task for TextGenerationWithImage {
    fn num_generations(&self) -> u32 {
        self.num_generations()
    }

    fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        self.render(row, context)
    }

    fn own_sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<(SamplingParams, u32)>, Fault> {
        Ok(self.sampling(row, run)?.map(|sampling| (sampling, self.num_generations())))
    }

    fn output_rows(&self, row: &Row, rendered: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        self.output_rows(row, rendered, result)
    }
}

impl Task for OpenAiBatch {
    fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        self.render(row, context)
    }

    fn own_sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<(SamplingParams, u32)>, Fault> {
        self.sampling(row, run).map(Some)
    }

    fn output_rows(&self, row: &Row, _rendered: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        self.output_rows(row, result)
    }
}
