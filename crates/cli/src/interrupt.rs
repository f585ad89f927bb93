//! Ctrl-C and termination signals: the first ends the run in good order, the second at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vgen_core::{CancelToken, Fault};

use crate::exit;
use crate::messages::Messages;

/// What the signals act on.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    token: CancelToken,
    /// Whether there is anything to end in good order.
    running: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signals over. Until [`Interrupt::run`] the first one ends the program at once.
    pub(crate) fn install(messages: &Messages) -> Result<Self, Fault> {
        let interrupt = Self::default();
        let (shared, messages) = (interrupt.clone(), messages.clone());
        ctrlc::set_handler(move || {
            if shared.token.is_cancelled() || !shared.running.load(Ordering::Acquire) {
                quit();
            }
            shared.token.cancel();
            messages.info("interrupted: writing what is finished; once more quits at once");
        })
        .map_err(|error| Fault::stop("run.signals", format!("signals can't be handled: {error}")))?;
        Ok(interrupt)
    }

    /// The token that the first signal cancels from now on.
    pub(crate) fn run(&self) -> CancelToken {
        self.running.store(true, Ordering::Release);
        self.token.clone()
    }
}

#[expect(clippy::exit, reason = "the second signal means now")]
fn quit() -> ! {
    std::process::exit(exit::INTERRUPTED.into())
}
