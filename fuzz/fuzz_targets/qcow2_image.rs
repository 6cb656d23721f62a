//! Any bytes as a qcow2 image: never a panic; what converts has exactly its virtual size, converts to the same again,
//! and reads the same in any pieces, at each snapshot, above another file and below one; and nothing takes long.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use nspawn_fuzz::qcow2::{Cluster, build, mutate};
use nspawn_fuzz::{Random, processor_time, scratch_folder};
use nspawn_image::qcow2::{Header, OpenOptions, Qcow2, Qcow2Error};
use nspawn_image::{Cancel, ReadAt};

/// Largest virtual size accepted, in bytes: three units of work.
const LIMIT: u64 = 6 << 20;
/// Processor time for one input, all its conversions together.
const TIME: Duration = Duration::from_secs(5);
/// Bytes of the files that lie below an input.
const BASE: usize = 300 << 10;
/// Clusters of the overlay that an input lies below.
const TOP_BITS: u32 = 9;

/// What a buffer holds where nothing was read into it.
static UNTOUCHED: [u8; 2 << 20] = [0xee; 2 << 20];

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 5 == 0 {
        fuzzer_mutate(data, size, max_size)
    } else {
        mutate(data, size, max_size, seed)
    }
});

/// What the base files hold where they hold something: never zero.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8 + 1
}

/// Folders with the files below: `full` has the pattern in them, `empty` zeros, `chain` takes the input.
fn stage() -> &'static PathBuf {
    static STAGE: OnceLock<PathBuf> = OnceLock::new();
    STAGE.get_or_init(|| {
        let stage = scratch_folder("qcow2");
        let content: Vec<u8> = (0..BASE).map(pattern).collect();
        let packed = build(16, BASE as u64, None, |number| {
            let start = number as usize * (1 << 16);
            let part = content[start..BASE.min(start + (1 << 16))].to_vec();
            match number % 2 {
                0 => Cluster::Packed(part),
                _ => Cluster::Data(part),
            }
        });
        let nothing = build(16, BASE as u64, None, |_| Cluster::Hole);
        for (folder, raw, image) in [
            ("full", content.clone(), packed),
            ("empty", vec![0; BASE], nothing),
        ] {
            let folder = stage.join(folder);
            // A part of one of the names.
            fs::create_dir_all(folder.join("folder")).expect("a folder for the files below");
            fs::write(folder.join("base.raw"), raw).expect("a file below");
            fs::write(folder.join("base.qcow2"), image).expect("a file below");
        }
        fs::create_dir_all(stage.join("chain")).expect("a folder for the input");
        stage
    })
}

fn options(folder: Option<&str>) -> OpenOptions {
    let mut options = OpenOptions::default();
    options.limit = LIMIT;
    options.backing = folder.map(|folder| stage().join(folder));
    options
}

/// Converts an image into `output` and holds the converter to its promises.
fn convert<S: ReadAt>(image: &Qcow2<S>, output: &Mutex<Vec<u8>>) -> Result<(), Qcow2Error> {
    let size = image.header().virtual_size;
    assert!(size <= LIMIT && (9..=21).contains(&image.header().cluster_bits));
    let mut last = 0;
    image.convert(output, &Cancel::default(), &mut |at| {
        assert!(
            at >= last && at <= size,
            "progress {last}, then {at} of {size}"
        );
        last = at;
    })?;
    assert_eq!(last, size);
    assert_eq!(
        output.lock().expect("no thread panicked").len() as u64,
        size
    );
    Ok(())
}

/// Memory that is kept from input to input: taking it anew would cost more than the conversions.
#[derive(Default)]
struct Memory {
    outputs: [Mutex<Vec<u8>>; 2],
    buffer: Vec<u8>,
}

/// Converts twice and reads at random; answers the guest's bytes where there are any.
fn check<S: ReadAt>(image: &Qcow2<S>, random: &mut Random) -> Option<Vec<u8>> {
    static MEMORY: OnceLock<Mutex<Memory>> = OnceLock::new();
    let mut memory = MEMORY
        .get_or_init(Mutex::default)
        .lock()
        .expect("one thread");
    let Memory { outputs, buffer } = &mut *memory;
    buffer.resize(UNTOUCHED.len(), 0);
    let results = [0, 1].map(|index| convert(image, &outputs[index]));
    let reader = image.reader();
    let size = image.header().virtual_size;
    if let [Err(error), Err(_)] = &results {
        assert!(!error.to_string().is_empty());
        let mut parts = (0..size).step_by(buffer.len());
        let fails = parts.any(|at| reader.read_at(buffer, at).is_err());
        assert!(fails, "it reads and does not convert: {error}");
        return None;
    }
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let [first, second] = outputs
        .each_ref()
        .map(|output| output.lock().expect("no panic"));
    assert!(*first == *second, "two conversions differ");
    for _ in 0..12 {
        let at = random.below(size + 2) as usize;
        let length = match random.below(3) {
            0 => random.index(64),
            1 => random.index(70_000),
            _ => random.index(buffer.len()),
        };
        // Comparing whole slices: each comparison of a byte would be counted by the instrumentation.
        let place = &mut buffer[..length];
        place.copy_from_slice(&UNTOUCHED[..length]);
        let count = reader.read_at(place, at as u64).expect("it converts");
        let expected = &first[at.min(first.len())..(at + length).min(first.len())];
        assert_eq!(count, expected.len());
        assert!(place[..count] == *expected, "{length} bytes at {at} differ");
        assert!(place[count..] == UNTOUCHED[..length - count]);
    }
    Some(first.clone())
}

/// The input as the lower file of an overlay, half of whose clusters are holes.
fn check_below(input: &[u8], below: Option<&[u8]>, random: &mut Random) {
    fs::write(stage().join("chain/input"), input).expect("the input's file");
    let size = below
        .map_or(64 << 10, |below| below.len() as u64 + 3000)
        .min(LIMIT);
    let kind = |number: u64| number % 4;
    let top = build(TOP_BITS, size, Some("input"), |number| match kind(number) {
        0 | 1 => Cluster::Hole,
        2 if number < 256 => Cluster::Data(vec![0x77; 1 << TOP_BITS]),
        _ => Cluster::Zero,
    });
    let Ok(image) = Qcow2::open_with(top, &options(Some("chain"))) else {
        assert!(below.is_none(), "the overlay does not open, the image does");
        return;
    };
    let Some(below) = below else {
        // Where the damage is not in a hole's way, it may well be read.
        let _ = convert(&image, &Mutex::default());
        return;
    };
    let found = check(&image, random).expect("an overlay on what converts");
    let mut expected = vec![0; size as usize];
    let held = below.len().min(expected.len());
    expected[..held].copy_from_slice(&below[..held]);
    for (number, part) in (0..).zip(expected.chunks_mut(1 << TOP_BITS)) {
        match kind(number) {
            0 | 1 => {}
            2 if number < 256 => part.fill(0x77),
            _ => part.fill(0),
        }
    }
    assert!(found == expected, "the overlay is not what it is made of");
}

/// The input as an overlay: a byte is its own, or that of the file below.
fn check_above(input: &[u8], random: &mut Random) {
    let Ok(image) = Qcow2::open_with(input, &options(Some("full"))) else {
        return;
    };
    assert!(!image.chain().is_empty());
    let full = check(&image, random);
    let image = Qcow2::open_with(input, &options(Some("empty"))).expect("the same with zeros");
    let output = Mutex::default();
    let empty = convert(&image, &output);
    assert_eq!(full.is_some(), empty.is_ok());
    let Some(full) = full else {
        return;
    };
    let empty = output.into_inner().expect("no thread panicked");
    assert_eq!(full.len(), empty.len());
    // A qcow2 file that is to be taken as a raw one differs everywhere.
    let backing = image.header().backing.as_ref().expect("an overlay");
    if backing.name.ends_with(".qcow2") && backing.format.as_deref() == Some("raw") {
        return;
    }
    for (start, (full, empty)) in (0..)
        .step_by(512)
        .zip(full.chunks(512).zip(empty.chunks(512)))
    {
        if full == empty {
            continue;
        }
        for (at, (full, empty)) in (start..).zip(full.iter().zip(empty)) {
            let is_below = *empty == 0 && at < BASE && *full == pattern(at);
            assert!(full == empty || is_below, "byte {at}: {full} and {empty}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let start = processor_time();
    let mut random = Random::new(bytes.len() as u32);
    match Qcow2::open_with(bytes, &options(None)) {
        Ok(image) => {
            let found = check(&image, &mut random);
            for snapshot in image.snapshots().unwrap_or_default().iter().take(2) {
                let mut at = options(None);
                at.snapshot = Some(snapshot.id.clone());
                if let Ok(image) = Qcow2::open_with(bytes, &at) {
                    check(&image, &mut random);
                }
            }
            check_below(bytes, found.as_deref(), &mut random);
        }
        Err(Qcow2Error::BackingFile(name)) => {
            let header = Header::read(bytes, LIMIT).expect("a header that names a file");
            assert_eq!(header.backing.map(|backing| backing.name), Some(name));
            check_above(bytes, &mut random);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _ = error.hint();
        }
    }
    let took = processor_time().saturating_sub(start);
    assert!(took < TIME, "it took {took:?}");
});
