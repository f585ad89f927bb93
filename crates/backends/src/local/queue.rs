//! [`JobQueue`]: the rows that wait for an engine, one queue for all engines.
//!
//! An engine takes the oldest row whose images no other engine has: rows about one image stay together, and the image is
//! encoded once. Only an engine that has nothing at all to do takes another's rows, and only while many wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vgen_core::Fault;

use super::row::Job;

/// Images whose engine is remembered.
const CLAIMS: usize = 4096;

/// Rows that wait.
#[derive(Debug)]
pub(crate) struct JobQueue {
    state: Mutex<State>,
    /// Rows came, or no more will.
    came: Condvar,
    /// Rows were taken.
    room: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    producers: usize,
    engines: usize,
    claims: HashMap<[u8; 32], usize>,
    /// In the order they were made.
    claimed: VecDeque<[u8; 32]>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job(row {})", self.row)
    }
}

/// What an engine gets.
pub(crate) enum Taken {
    Job(Box<Job>),
    /// Nothing for it now.
    Nothing,
    /// Nothing any more.
    Closed,
}

/// Who puts rows in; the queue is closed when there is none any more.
#[derive(Debug)]
pub(crate) struct Producer(Arc<JobQueue>);

/// Who takes rows.
#[derive(Debug)]
pub(crate) struct Consumer {
    queue: Arc<JobQueue>,
    engine: usize,
}

impl JobQueue {
    /// Holds back who brings rows when `capacity` wait.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), came: Condvar::new(), room: Condvar::new(), capacity })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn producer(self: &Arc<Self>) -> Producer {
        self.lock().producers += 1;
        Producer(Arc::clone(self))
    }

    pub(crate) fn consumer(self: &Arc<Self>, engine: usize) -> Consumer {
        self.lock().engines += 1;
        Consumer { queue: Arc::clone(self), engine }
    }
}

impl Producer {
    /// Waits for room. A row that no engine is left for is answered so.
    pub(crate) fn push(&self, job: Job) {
        let mut state = self.0.lock();
        while state.jobs.len() >= self.0.capacity && state.engines > 0 {
            state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.engines == 0 {
            drop(state);
            return lost(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.0.came.notify_all();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.0.lock().producers -= 1;
        self.0.came.notify_all();
    }
}

impl Consumer {
    /// The next row for this engine. One that is `idle` waits until there is one or no more will come.
    pub(crate) fn take(&self, idle: bool) -> Taken {
        let mut state = self.queue.lock();
        loop {
            let many = idle && state.jobs.len() >= self.queue.capacity.div_ceil(2);
            if let Some(job) = state.take(self.engine, many) {
                drop(state);
                self.queue.room.notify_all();
                return Taken::Job(Box::new(job));
            }
            if state.producers == 0 {
                // What is left belongs to other engines.
                return Taken::Closed;
            }
            if !idle {
                return Taken::Nothing;
            }
            state = self.queue.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Consumer {
    /// The rows of an engine that ended go to the others; without others they are answered.
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.engines -= 1;
        let engine = self.engine;
        state.claims.retain(|_, owner| *owner != engine);
        let left = if state.engines == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        drop(state);
        left.into_iter().for_each(lost);
        self.queue.room.notify_all();
        self.queue.came.notify_all();
    }
}

fn lost(job: Job) {
    job.reply.done(Err(Fault::stop("backend.lost", "the engine is gone")));
}

impl State {
    fn take(&mut self, engine: usize, any: bool) -> Option<Job> {
        let others = |job: &Job| {
            job.images.iter().any(|image| self.claims.get(&image.digest).is_some_and(|owner| *owner != engine))
        };
        let at = self.jobs.iter().position(|job| !others(job)).or(if any { Some(0) } else { None })?;
        let job = self.jobs.remove(at)?;
        for image in &job.images {
            if self.claims.insert(image.digest, engine).is_none() {
                self.claimed.push_back(image.digest);
            }
        }
        while self.claimed.len() > CLAIMS {
            if let Some(oldest) = self.claimed.pop_front() {
                self.claims.remove(&oldest);
            }
        }
        Some(job)
    }
}
