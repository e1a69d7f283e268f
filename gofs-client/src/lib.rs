//! What every gateway needs of gofs: a session with the MetaServer, cached leases, and the
//! contents of files. Knows no kernel.

#![forbid(unsafe_code)]

pub mod data;
