//! [`FetchAhead`]: images that the output is to hold and that the backend does not fetch itself, fetched while it answers.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use vgen_core::{Fault, ImageRef, Message, Response, Row, SamplingParams};
use vgen_run::Task;
use vgen_task::image::{Claim, ImageFetcher, ImageLimits, KeptImages};
use vgen_task::{Rendered, RowContext};

/// Threads that fetch.
const FETCHERS: usize = 16;

/// A task whose images from the network are on their way as soon as a row is rendered.
pub(crate) struct FetchAhead {
    task: Box<dyn Task>,
    kept: Arc<KeptImages>,
    claims: Sender<Claim>,
}

impl FetchAhead {
    /// Puts the images of `task`'s rows into `kept`. The threads end with it.
    pub(crate) fn new(task: Box<dyn Task>, kept: Arc<KeptImages>, limits: ImageLimits) -> Self {
        let (claims, queue) = channel();
        let fetcher = Arc::new(ImageFetcher::new(limits).keeping(Some(Arc::clone(&kept))));
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..FETCHERS {
            let (fetcher, queue) = (Arc::clone(&fetcher), Arc::clone(&queue));
            std::thread::spawn(move || fetch_all(&fetcher, &queue));
        }
        Self { task, kept, claims }
    }
}

fn fetch_all(fetcher: &ImageFetcher, queue: &Mutex<Receiver<Claim>>) {
    loop {
        let claim = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(claim) = claim else { break };
        // What can't be fetched is kept as such.
        let _ = fetcher.fetch(&ImageRef::Url(Arc::clone(claim.url())));
    }
}

impl Task for FetchAhead {
    fn num_generations(&self) -> u32 {
        self.task.num_generations()
    }

    fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        let rendered = self.task.render(row, context)?;
        for image in rendered.messages.iter().flat_map(Message::images) {
            if let ImageRef::Url(url) = image
                && url.contains("://")
                && let Some(claim) = self.kept.claim(url)
            {
                // The threads live as long as this.
                let _ = self.claims.send(claim);
            }
        }
        Ok(rendered)
    }

    fn own_sampling(&self, row: &Row, run: &SamplingParams) -> Result<Option<(SamplingParams, u32)>, Fault> {
        self.task.own_sampling(row, run)
    }

    fn output_rows(&self, row: &Row, rendered: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        self.task.output_rows(row, rendered, result)
    }
}
