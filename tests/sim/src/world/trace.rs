//! One number for all that happened, in order.

/// FNV-1a over 64-bit words.
pub struct Trace {
    sum: u64,
    shown: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Trace { sum: 0xcbf2_9ce4_8422_2325, shown: std::env::var_os("GOFS_SIM_TRACE").is_some() }
    }
}

impl Trace {
    /// Takes a step in. `GOFS_SIM_TRACE=1` shows each, so that two runs can be compared.
    pub fn note(&mut self, what: &'static str, now: u64, a: u64, b: u64) {
        if self.shown {
            let line = format!("{now} {what} {a} {b:x}\n");
            // SAFETY: the line is as long as said; std's own way to stderr would come back here.
            unsafe { crate::interpose::real::write(2, line.as_ptr().cast(), line.len()) };
        }
        self.mix(now);
        self.mix(a);
        self.mix(b);
    }

    fn mix(&mut self, word: u64) {
        self.sum = (self.sum ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    }

    /// Of all so far.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// The same for bytes.
pub fn sum_of(bytes: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01b3).rotate_left(29);
    }
    sum ^ bytes.len() as u64
}
