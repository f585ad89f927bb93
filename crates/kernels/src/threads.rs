//! How many threads the kernels use, and how work is spread over them.
//!
//! Work is a number of tasks that the threads take one after another; what a task computes never depends on who takes
//! it. The threads are this module's own, as many as rayon's pool has: a step of decode is hundreds of products of some
//! ten microseconds each, which a general pool's sleeping and waking would double. They wait for the next product awake
//! for a moment, then asleep. Only one call is spread at a time; a call that comes meanwhile does its tasks alone.
#![allow(unsafe_code)] // disjoint parts of one output are written by several threads

mod pool;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

thread_local! {
    static SCOPED: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Work estimated below this many nanoseconds is not worth waking another thread for.
const SMALL_NS: usize = 20_000;

/// Uses at most `count` threads of the pool (0: all of them) from now on, in the whole process.
pub fn set_limit(count: usize) {
    LIMIT.store(if count == 0 { usize::MAX } else { count }, Ordering::Relaxed);
}

/// The number of threads that a kernel called from here may use.
#[must_use]
pub fn limit() -> usize {
    rayon::current_num_threads().min(LIMIT.load(Ordering::Relaxed)).min(SCOPED.get()).max(1)
}

/// Runs `body` with at most `count` threads for the kernels that this thread calls meanwhile.
pub fn with_limit<T>(count: usize, body: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPED.set(self.0);
        }
    }
    let _restore = Restore(SCOPED.replace(count.max(1)));
    body()
}

/// The number of threads for work of about `ns` nanoseconds on one thread.
pub(crate) fn for_work(ns: usize) -> usize {
    if ns < SMALL_NS { 1 } else { limit() }
}

/// Calls `task` once with every number below `tasks`, on up to `threads` threads.
pub(crate) fn run(threads: usize, tasks: usize, task: impl Fn(usize) + Sync) {
    let workers = threads.min(tasks);
    if workers <= 1 {
        (0..tasks).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    pool::spread(workers - 1, &|| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                break;
            }
            task(i);
        }
    });
}

/// Calls `task` with every chunk of `data` (of `chunk` elements, the last may be shorter) and its number.
pub(crate) fn run_chunks<T: Send>(threads: usize, data: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let len = data.len();
    let base = Shared(data.as_mut_ptr());
    run(threads, len.div_ceil(chunk.max(1)), |i| {
        let start = i * chunk;
        // SAFETY: chunk i is [start, start + chunk) within `data`, each number is given to one task only, and `data`
        // stays mutably borrowed until all tasks have ended.
        let part = unsafe { std::slice::from_raw_parts_mut(base.get().add(start), chunk.min(len - start)) };
        task(i, part);
    });
}

/// A pointer that tasks on several threads use for parts that don't overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

impl<T> Shared<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: only the address is shared; whoever dereferences it says why the parts don't overlap.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
