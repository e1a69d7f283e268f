//! Programs that read a file at random come to have all of it in memory, and never anything old.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use gofs_posix_tests::{Cluster, eventually, posix};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PAGE: usize = 4096;
const PAGES: usize = 32 << 20 >> 12;

/// What a page holds when it was written for the `round`th time.
fn page(number: usize, round: u8) -> Vec<u8> {
    let mut bytes = vec![round; PAGE];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn look(file: &File, number: usize, round: u8) {
    let mut bytes = vec![0; PAGE];
    file.read_exact_at(&mut bytes, (number * PAGE) as u64).unwrap();
    assert!(bytes == page(number, round), "page {number} is not of round {round}");
}

#[test]
fn a_file_that_is_read_at_random_is_soon_read_from_memory_and_is_never_old() {
    let cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    let writer = File::create_new(b.join("file")).unwrap();
    let whole: Vec<u8> = (0..PAGES).flat_map(|number| page(number, 0)).collect();
    writer.write_all_at(&whole, 0).unwrap();
    drop(whole);

    let mut random = StdRng::seed_from_u64(1);
    let reader = File::open(a.join("file")).unwrap();
    posix::advise_random(&reader).unwrap();
    let mut rounds = vec![0; PAGES];
    let at_first = a.counted("operation read");
    for round in 0..3_u8 {
        eventually("pages to be read from memory", Duration::from_secs(60), || {
            let before = a.counted("operation read");
            for _ in 0..1000 {
                let number = random.random_range(0..PAGES);
                look(&reader, number, rounds[number]);
            }
            let asked = a.counted("operation read") - before;
            if asked < 50 { Ok(()) } else { Err(format!("{asked} of 1,000 were asked for")) }
        });
        if round == 0 {
            let asked = a.counted("operation read") - at_first;
            assert!(
                asked < PAGES as u64 / 3,
                "{asked} requests for {PAGES} pages: regions are not read whole"
            );
        }
        // Written from elsewhere, while the rest is read from memory.
        for _ in 0..100 {
            let number = random.random_range(0..PAGES);
            rounds[number] = round + 1;
            writer.write_all_at(&page(number, round + 1), (number * PAGE) as u64).unwrap();
            look(&reader, number, round + 1);
            let other = random.random_range(0..PAGES);
            look(&reader, other, rounds[other]);
        }
    }
    drop(reader);
    a.unmount();
}
