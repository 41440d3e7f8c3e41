//! How much arithmetic has been handed to a GPU since it was last told to begin.
//!
//! cubecl submits a command buffer every few dozen dispatches, however long they take. Windows resets a
//! GPU that works at one for two seconds, and everything else that the user sees waits as long. So what
//! is queued is submitted, too, whenever its products are this much.

use std::cell::Cell;

/// Floating-point operations of products in one submission, about: a quarter of a second on a GPU of
/// 0.25 TFLOP/s, the slowest that one would train on, and a few milliseconds on a large one.
const LARGEST: u64 = 64_000_000_000;

thread_local! {
    /// A thread has a stream of commands of its own.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
}

/// Counts a product of so many operations, and says whether it is time to submit.
pub(super) fn add(operations: u64) -> bool {
    let queued = QUEUED.get() + operations;
    let is_enough = queued >= LARGEST;
    QUEUED.set(if is_enough { 0 } else { queued });
    is_enough
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_submitted_before_it_is_too_much() {
        let submissions =
            |products: u64, operations| (0..products).filter(|_| add(operations)).count() as u64;
        // Each in a thread of its own, as nothing may be left of the one before.
        std::thread::scope(|threads| {
            let small = threads.spawn(move || submissions(1_000, LARGEST / 100));
            assert_eq!(small.join().unwrap(), 10);
            let large = threads.spawn(move || submissions(3, 2 * LARGEST));
            assert_eq!(large.join().unwrap(), 3);
            let few = threads.spawn(move || submissions(9, LARGEST / 10));
            assert_eq!(few.join().unwrap(), 0);
        });
    }
}
