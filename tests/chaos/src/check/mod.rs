//! The checkers: pure functions of what was done and answered. Each is shown to fail in its tests.

pub mod append;
pub mod linear;
pub mod names;
pub mod register;
pub mod tree;
