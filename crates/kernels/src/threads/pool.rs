//! The threads that help with a call, and how they find it.
//!
//! One word holds the state: `epoch << 32 | closed << 31 | entered`. A call opens a new epoch, helpers enter it by
//! counting themselves in, and the caller closes it when no task is left. It then waits only for those that entered:
//! a helper that was slow to wake finds the epoch closed and touches nothing of it.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock};
use std::thread::Thread;

const CLOSED: u64 = 1 << 31;
const ENTERED: u64 = CLOSED - 1;

/// Looks at the state before a helper goes to sleep: some tens of microseconds.
const LOOKS: usize = 3000;

/// Waits of this many looks at a time are broken by giving the processor away, for machines with other work to do.
const LOOKS_BEFORE_YIELD: usize = 500;

type Work = dyn Fn() + Sync;

struct Pool {
    state: AtomicU64,
    /// How many helpers of the epoch are done.
    left: AtomicU64,
    /// How many may help.
    wanted: AtomicUsize,
    panicked: AtomicBool,
    work: UnsafeCell<*const Work>,
    helpers: Vec<Helper>,
    /// Held by the caller whose work is spread.
    calling: Mutex<()>,
}

struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

// SAFETY: `work` is written only by the holder of `calling` while the state is closed and nobody is entered, and read
// only by helpers that entered an open epoch, which the write happens before.
unsafe impl Sync for Pool {}
// SAFETY: the pointer is only used as described above.
unsafe impl Send for Pool {}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let nothing: &'static Work = &|| {};
        let helper = || Helper { thread: OnceLock::new(), asleep: AtomicBool::new(false) };
        Pool {
            state: AtomicU64::new(CLOSED),
            left: AtomicU64::new(0),
            wanted: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            work: UnsafeCell::new(nothing),
            helpers: (1..rayon::current_num_threads()).map(|_| helper()).collect(),
            calling: Mutex::new(()),
        }
    });
    STARTED.get_or_init(|| {
        for (i, helper) in pool.helpers.iter().enumerate() {
            // Where a thread can't be started the others do its share.
            let started = std::thread::Builder::new().name(format!("vgen-kernel-{i}")).spawn(move || pool.help(helper));
            if let Ok(started) = started {
                let _ = helper.thread.set(started.thread().clone());
            }
        }
    });
    pool
}

/// Calls `work` here and on up to `helpers` more threads at a time; returns when all calls have.
///
/// # Panics
/// If one of the calls does.
pub(super) fn spread(helpers: usize, work: &(dyn Fn() + Sync)) {
    let pool = pool();
    // A call within a call, or beside one, works alone.
    let Ok(_calling) = pool.calling.try_lock() else { return work() };
    // SAFETY: the lifetime is extended only until `close` below has seen every helper leave.
    let work_ptr = unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const Work>(work) };
    // SAFETY: the lock is held, and the last epoch was closed and left by all.
    unsafe { *pool.work.get() = work_ptr };
    pool.left.store(0, Ordering::Relaxed);
    pool.wanted.store(helpers, Ordering::Relaxed);
    pool.panicked.store(false, Ordering::Relaxed);
    let epoch = (pool.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
    pool.state.store(epoch << 32, Ordering::Release);
    fence(Ordering::SeqCst);
    for helper in pool.helpers.iter().take(helpers) {
        if helper.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = helper.thread.get()
        {
            thread.unpark();
        }
    }
    let own = catch_unwind(AssertUnwindSafe(work));
    let entered = pool.state.fetch_or(CLOSED, Ordering::AcqRel) & ENTERED;
    wait(usize::MAX, || pool.left.load(Ordering::Acquire) == entered);
    if let Err(panic) = own {
        resume_unwind(panic);
    }
    assert!(!pool.panicked.load(Ordering::Relaxed), "a task of a kernel panicked on another thread");
}

/// Looks for `done` up to so many times.
fn wait(looks: usize, done: impl Fn() -> bool) -> bool {
    for look in 1..=looks {
        if done() {
            return true;
        }
        if look.is_multiple_of(LOOKS_BEFORE_YIELD) {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
    }
    false
}

impl Pool {
    /// Body of a helper's thread.
    fn help(&self, helper: &Helper) {
        let mut last = 0;
        let is_new = |last: u64| {
            let state = self.state.load(Ordering::Acquire);
            state & CLOSED == 0 && state >> 32 != last
        };
        loop {
            if !wait(LOOKS, || is_new(last)) {
                helper.asleep.store(true, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                // What was opened before the flag was seen is found here; what comes after unparks.
                while helper.asleep.load(Ordering::SeqCst) && !is_new(last) {
                    std::thread::park();
                }
                helper.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            if let Some((epoch, place)) = self.enter(last) {
                last = epoch;
                if place < self.wanted.load(Ordering::Relaxed) {
                    // SAFETY: the epoch was open when this thread entered, so the caller waits until `left` counts it.
                    let work = unsafe { &**self.work.get() };
                    if catch_unwind(AssertUnwindSafe(work)).is_err() {
                        self.panicked.store(true, Ordering::Relaxed);
                    }
                }
                self.left.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Counts a helper in, unless the epoch is closed or was helped before.
    fn enter(&self, last: u64) -> Option<(u64, usize)> {
        let enter = |state: u64| (state & CLOSED == 0 && state >> 32 != last).then_some(state + 1);
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).ok()?;
        Some((before >> 32, (before & ENTERED) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_sees_all_of_its_work_done() {
        for round in 0..20_000 {
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let tasks = round % 17;
            spread(3, &|| {
                while next.fetch_add(1, Ordering::Relaxed) < tasks {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.load(Ordering::Relaxed), tasks);
            if round % 5000 == 0 {
                // Helpers fall asleep, and are woken.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn calls_from_several_threads_and_within_calls() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let count = AtomicUsize::new(0);
                        spread(2, &|| {
                            spread(2, &|| {
                                count.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(count.load(Ordering::Relaxed) >= 1);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_comes_back_and_the_pool_goes_on() {
        let caught = catch_unwind(|| spread(1, &|| std::panic::panic_any("task")));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        spread(1, &|| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert!(count.load(Ordering::Relaxed) >= 1);
    }
}
