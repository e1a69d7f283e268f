//! The leases of this mount and what is cached under them.
//!
//! [`LeaseTable`] decides, sync and with the time given; the client around it sends, waits and asks the
//! kernel to forget. What is in the table is true as long as the lease is held, no recall has begun
//! and the session is valid: only then is anything answered from it. Replies of the
//! server change it in the order in which they were sent.

mod edits;
mod entry;
mod evict;
mod listings;
mod names;
mod opens;
mod pages;
mod recall;
mod store;
mod table;
mod uses;
mod walk;

pub use edits::{Position, changed_itself, concerned, made_by};
pub use evict::Eviction;
pub use listings::KernelListing;
pub use names::Listing;
pub use opens::{Closing, Holding, LINGER, Opening};
pub use pages::{LockedPages, PAGE_BYTES};
pub use recall::{ReadEnd, ReadStart, Recalled, Taken};
pub use store::Changed;
pub use table::{LeaseTable, NameAnswer, Permit};
pub use uses::{UseGuard, Uses};
pub use walk::{Ahead, PageRequest, WalkRequest, Wanted};

#[cfg(test)]
mod tests;
