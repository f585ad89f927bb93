//! The script in virtual time: the same queue and servers as the threads, as things that happen one after the other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vgen_core::{FinishReason, Reply, Request, Timings};

use super::{Script, VirtualTime};

pub(super) struct VirtualServers {
    pub(super) script: Arc<Script>,
    pub(super) time: Arc<VirtualTime>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    busy: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    request: Request,
    reply: Box<dyn Reply>,
    submitted: f64,
}

/// A request on a server.
struct Served {
    request: Request,
    reply: Box<dyn Reply>,
    submitted: f64,
    words: std::vec::IntoIter<(u32, String)>,
    /// Seconds from one word to the next.
    gap: f64,
    timings: Timings,
}

impl VirtualServers {
    pub(super) fn submit(self: &Arc<Self>, request: Request, reply: Box<dyn Reply>) {
        self.lock().waiting.push_back(Waiting { request, reply, submitted: self.time.now() });
        self.start();
    }

    /// Puts whoever waits on the servers that are free.
    fn start(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            if state.busy == self.script.servers() {
                return;
            }
            let Some(Waiting { request, reply, submitted }) = state.waiting.pop_front() else { return };
            state.busy += 1;
            drop(state);
            let now = self.time.now();
            let words = self.script.words(&request);
            let (first, gap) = match &self.script.options.service {
                Some(service) => {
                    let gap = service.seconds(request.row) / words.len().max(1) as f64;
                    (gap, gap)
                }
                None => (submitted + self.script.delay(request.row).as_secs_f64() - now, 0.0),
            };
            let timings = Timings { queue: now - submitted, ..Timings::default() };
            let served = Served { request, reply, submitted, words: words.into_iter(), gap, timings };
            self.next_word(served, first);
        }
    }

    fn next_word(self: &Arc<Self>, mut served: Served, seconds: f64) {
        let this = Arc::clone(self);
        self.time.after(seconds, move || {
            let since = this.time.now() - served.submitted;
            served.timings.first_token.get_or_insert(since);
            if let Some((sample, word)) = served.words.next() {
                served.reply.delta(sample, &word);
            }
            if served.words.len() > 0 {
                let gap = served.gap;
                return this.next_word(served, gap);
            }
            let Served { request, reply, mut timings, .. } = served;
            timings.total = since;
            let ended = request.cancel.is_cancelled().then_some(FinishReason::Cancelled);
            this.lock().busy -= 1;
            this.script.end(&request, reply, ended, timings);
            this.start();
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
