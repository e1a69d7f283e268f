//! An answer and how long the kernel may keep it.

use std::time::Duration;

use crate::lease::UseGuard;

/// A value to be told to the kernel.
///
/// The caller replies first and drops `guard` after: a recall waits for it, so that the
/// kernel's copy is there when it is invalidated.
#[derive(Debug)]
pub struct Cached<T> {
    /// The answer.
    pub value: T,
    /// How long the kernel may keep the attributes (or target, or pages); 0 = not at all.
    pub ttl: Duration,
    /// How long the kernel may keep the name itself, its absence included; 0 = not at all, always so
    /// where the operation is not about a name or the kernel cannot be made to forget names.
    pub entry_ttl: Duration,
    /// Keeps a recall from finishing before the reply is sent.
    pub guard: UseGuard,
}

impl<T> Cached<T> {
    /// A value that must not be kept.
    pub fn once(value: T) -> Self {
        Cached { value, ttl: Duration::ZERO, entry_ttl: Duration::ZERO, guard: UseGuard::none() }
    }

    /// The same permission to keep, for another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Cached<U> {
        Cached { value: change(self.value), ttl: self.ttl, entry_ttl: self.entry_ttl, guard: self.guard }
    }
}
