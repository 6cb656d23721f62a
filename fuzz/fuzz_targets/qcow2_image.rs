//! Any bytes as a qcow2 image: never a panic, and what converts has exactly its virtual size.
#![no_main]

use std::sync::Mutex;

use libfuzzer_sys::fuzz_target;
use nspawn_image::Cancel;
use nspawn_image::qcow2::Qcow2;

/// Largest virtual size accepted, in bytes: small enough that no input takes long.
const LIMIT: u64 = 8 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Qcow2::open(bytes.to_vec(), LIMIT) else {
        return;
    };
    let size = image.header().virtual_size;
    assert!(size <= LIMIT && (9..=21).contains(&image.header().cluster_bits));
    let _ = image.snapshots();
    let output = Mutex::new(Vec::new());
    let mut last = 0;
    let done = image.convert(&output, &Cancel::default(), &mut |at| {
        assert!(at >= last && at <= size);
        last = at;
    });
    if done.is_ok() {
        assert_eq!(output.into_inner().unwrap().len() as u64, size);
        assert_eq!(last, size);
    }
});
