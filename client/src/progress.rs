//! How long tasks of the library tell a program how far they are.

use std::cell::RefCell;

use indicatif::ProgressBar;

/// Hears how a long task goes. Tasks follow each other; one at a time is under way.
pub trait Progress {
    /// A task begins that has `bytes` to move; 0 if nobody knows how many.
    fn begin(&self, what: &str, bytes: u64);
    /// So many bytes of the task are done.
    fn at(&self, bytes: u64);
    /// The task is over, well or badly.
    fn end(&self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _bytes: u64) {}
    fn at(&self, _bytes: u64) {}
    fn end(&self) {}
}

/// Shows a progress bar for each task, made by a function of its length and its name.
pub struct Bars<F> {
    make: F,
    bar: RefCell<Option<ProgressBar>>,
}

impl<F: Fn(u64, &str) -> ProgressBar> Bars<F> {
    /// Bars that `make` makes; it gets 0 bytes for tasks of unknown length.
    pub fn new(make: F) -> Self {
        Self {
            make,
            bar: RefCell::new(None),
        }
    }
}

impl<F: Fn(u64, &str) -> ProgressBar> Progress for Bars<F> {
    fn begin(&self, what: &str, bytes: u64) {
        self.end();
        self.bar.replace(Some((self.make)(bytes, what)));
    }

    fn at(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
