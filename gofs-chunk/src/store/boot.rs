//! Which boot of the host this is. What is in the page cache outlives processes, but not the boot.

use rand::RngExt;

/// Changes when the host starts anew, and so when writes that were not synced may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub u128);

impl BootId {
    /// The present one. Where the kernel does not tell, every process counts as a boot of its own.
    pub fn current() -> BootId {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let told = u128::from_str_radix(&text.trim().replace('-', ""), 16);
        BootId(told.unwrap_or_else(|_| rand::rng().random()))
    }

    /// As clients see it: not 0.
    pub fn incarnation(self) -> u64 {
        ((self.0 >> 64) as u64 ^ self.0 as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_one_boot() {
        assert_eq!(BootId::current(), BootId::current());
        assert_ne!(BootId(0).incarnation(), 0);
    }
}
