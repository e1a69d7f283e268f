//! What must hold, one property a file. Those of the history are looked at at the end, the others all the time.

pub mod appended;
pub mod coherent_blocks;
pub mod coherent_names;
pub mod exclusive_leases;
pub mod exclusive_locks;
pub mod inode_numbers;
pub mod prefix;
pub mod quota;
pub mod same_state;
