//! The leases of this mount and what is cached under them.

mod uses;

pub use uses::{UseGuard, Uses};
