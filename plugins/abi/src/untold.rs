//! Operations whose callers don't know the outcome yet: counted without the lock that everything else is under, since
//! each of them counts down, and whoever waits until there are none is rare.

/// What the count is made of, so that a model can have another.
pub(crate) trait Untold {
    /// Takes so many away. Returns how many there were.
    fn take(&self, count: usize) -> usize;

    /// Takes the lock under which those who wait look at the count, and gives it back.
    fn pass_lock(&self);

    /// Wakes those who wait.
    fn wake(&self);
}

/// So many callers more know.
pub(crate) fn told(untold: &impl Untold, count: usize) {
    if count > 0 && untold.take(count) == count {
        // whoever saw the last one untold, with the lock held, sleeps by now and hears of it
        untold.pass_lock();
        untold.wake();
    }
}

/// A caller is being told; ends also if that panics.
pub(crate) struct Telling<'a, U: Untold>(pub &'a U);

impl<U: Untold> Drop for Telling<'_, U> {
    fn drop(&mut self) {
        told(self.0, 1);
    }
}

/// All interleavings under loom.
#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    struct World {
        count: AtomicUsize,
        lock: Mutex<()>,
        idle: Condvar,
    }

    impl Untold for World {
        fn take(&self, count: usize) -> usize {
            self.count.fetch_sub(count, Ordering::AcqRel)
        }

        fn pass_lock(&self) {
            drop(self.lock.lock().unwrap());
        }

        fn wake(&self) {
            self.idle.notify_all();
        }
    }

    // a wake-up that is lost is a deadlock, which loom finds and ends the process for
    #[test]
    fn whoever_waits_hears_of_the_last_one() {
        loom::model(|| {
            let world = Arc::new(World {
                count: AtomicUsize::new(4),
                lock: Mutex::new(()),
                idle: Condvar::new(),
            });
            let telling = [(); 2].map(|()| {
                let world = world.clone();
                thread::spawn(move || drop(Telling(&*world)))
            });
            told(&*world, 2);
            let mut held = world.lock.lock().unwrap();
            while world.count.load(Ordering::Acquire) > 0 {
                held = world.idle.wait(held).unwrap();
            }
            drop(held);
            for thread in telling {
                thread.join().unwrap();
            }
        });
    }
}
