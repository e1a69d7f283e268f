//! Mounts over loopback against a whole MetaServer: what one does, the others find.

mod client;
mod coherence;
mod life;
mod locks;
