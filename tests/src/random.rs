//! Numbers and bytes that look random and can be had again.

/// Names the seed of [`Random::new`], to have a failed test's numbers again.
const SEED: &str = "NSPAWN_TEST_SEED";

/// A sequence of numbers. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence that differs from run to run, unless `NSPAWN_TEST_SEED` names its seed; what it is stands in the output
    /// of a test that fails.
    ///
    /// # Panics
    ///
    /// Where the variable holds no number.
    #[expect(clippy::new_without_default, reason = "it prints")]
    pub fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(text) => text.parse().expect("NSPAWN_TEST_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::SystemTime::UNIX_EPOCH)
                .map_or(0, |time| time.subsec_nanos().into()),
        };
        say(seed);
        Self(seed)
    }

    /// The sequence of a seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, below `limit`.
    ///
    /// # Panics
    ///
    /// Where nothing is below it.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// The next number, from 0 up to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The test harness shows it with the failure.
#[expect(clippy::print_stdout, reason = "the way of a test to say something")]
fn say(seed: u64) {
    println!("again with {SEED}={seed}");
}

/// A bare ext4 as far as anybody looks: data that packs to about half.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::of(seed);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.number().to_le_bytes())
        .take(length.div_ceil(8))
        .flatten()
        .map(|byte| byte & 0x0f)
        .take(length)
        .collect();
    if let Some(magic) = bytes.get_mut(1080..1082) {
        magic.copy_from_slice(&[0x53, 0xef]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_sequence() {
        // Source: the reference implementation's first number for the seed 0.
        assert_eq!(Random::of(0).number(), 0xe220_a839_7b1d_cdaf);
        let mut random = Random::of(1);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.fraction())));
        let bytes = noise(5001, 1);
        assert_eq!((bytes.len(), &bytes[1080..1082]), (5001, &[0x53, 0xef][..]));
    }
}
