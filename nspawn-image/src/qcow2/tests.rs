use std::io::Write as _;
use std::sync::Mutex;

use super::*;
use crate::convert::DiskSums;

const CLUSTER: usize = 512;
const LIMIT: u64 = 1 << 30;

/// A version 3 image of 8 clusters of 512 bytes: header, L1 at 1, L2 at 2, data at 3; entries are set by tests.
fn image(entries: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; 16 * CLUSTER];
    put32(&mut bytes, 0, 0x5146_49fb);
    put32(&mut bytes, 4, 3);
    put32(&mut bytes, 20, 9);
    put64(&mut bytes, 24, 8 * CLUSTER as u64 - 100);
    put32(&mut bytes, 36, 1);
    put64(&mut bytes, 40, CLUSTER as u64);
    put32(&mut bytes, 96, 4);
    put32(&mut bytes, 100, 112);
    put64(&mut bytes, CLUSTER, (2 * CLUSTER as u64) | (1 << 63));
    for (index, entry) in entries.iter().enumerate() {
        put64(&mut bytes, 2 * CLUSTER + 8 * index, *entry);
    }
    bytes[3 * CLUSTER..4 * CLUSTER].fill(0xd1);
    bytes
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn convert(bytes: Vec<u8>) -> Result<Vec<u8>, Qcow2Error> {
    let output = Mutex::new(Vec::new());
    let image = Qcow2::open(bytes, LIMIT)?;
    image.convert(&output, &Cancel::default(), &mut |_| {})?;
    let plain = output.into_inner().unwrap();
    // The checksums taken on the way are those of what was written.
    let output = Mutex::new(Vec::new());
    let sums = convert::run_with(&image, &output, true, &Cancel::default(), &mut |_| {})?;
    assert!(output.into_inner().unwrap() == plain);
    let expected = DiskSums::of(&plain, &Cancel::default(), &mut |_| {})?;
    assert_eq!(sums, Some(expected));
    Ok(plain)
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn plain_zero_unallocated_and_compressed_clusters() {
    let packed = deflated(&[0xc2; CLUSTER]);
    let mut bytes = image(&[
        (3 * CLUSTER as u64) | (1 << 63),
        1,
        0,
        1 << 62 | (4 * CLUSTER as u64 + 7),
        0,
        0,
        0,
        3 * CLUSTER as u64,
    ]);
    bytes[4 * CLUSTER + 7..][..packed.len()].copy_from_slice(&packed);
    let mut expected = vec![0; 8 * CLUSTER - 100];
    expected[..CLUSTER].fill(0xd1);
    expected[3 * CLUSTER..4 * CLUSTER].fill(0xc2);
    expected[7 * CLUSTER..].fill(0xd1);
    assert!(convert(bytes.clone()).unwrap() == expected);
    put32(&mut bytes, 100, 112);
    put64(&mut bytes, 72, 8);
    bytes[104] = 1;
    assert!(matches!(
        convert(bytes.clone()),
        Err(Qcow2Error::Compressed {
            guest: 1536,
            host: 2055
        })
    ));
    let packed = zstd::encode_all(&[0xc2; CLUSTER][..], 3).unwrap();
    bytes[4 * CLUSTER + 7..][..packed.len()].copy_from_slice(&packed);
    assert!(convert(bytes).unwrap() == expected);
}

#[test]
fn a_stream_longer_than_its_cluster_is_read_as_qemu_reads_it() {
    let mut bytes = image(&[(1 << 62) | (4 * CLUSTER as u64)]);
    let packed = deflated(&[0xc3; 2 * CLUSTER]);
    bytes[4 * CLUSTER..][..packed.len()].copy_from_slice(&packed);
    assert!(convert(bytes).unwrap()[..CLUSTER] == [0xc3; CLUSTER]);
}

#[test]
fn zstd_frames_make_up_a_cluster_and_no_more() {
    let frame = |length: usize| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&vec![0xc4; length]).unwrap();
        encoder.finish().unwrap()
    };
    let read = |packed: &[u8]| {
        let mut bytes = image(&[1 << 62 | 1 << 61 | (4 * CLUSTER as u64)]);
        put64(&mut bytes, 72, 8);
        bytes[104] = 1;
        bytes[4 * CLUSTER..][..packed.len()].copy_from_slice(packed);
        convert(bytes).map(|bytes| bytes[..CLUSTER] == [0xc4; CLUSTER])
    };
    assert!(matches!(read(&frame(CLUSTER)), Ok(true)));
    let two = [frame(CLUSTER / 2), frame(CLUSTER / 2)].concat();
    assert!(matches!(read(&two), Ok(true)));
    // QEMU takes neither of these for a sound image.
    let longer = [frame(CLUSTER / 2), frame(CLUSTER)].concat();
    for bad in [&frame(CLUSTER + 1), &longer, &frame(CLUSTER - 1)] {
        let error = read(bad).unwrap_err();
        assert!(
            matches!(error, Qcow2Error::Compressed { guest: 0, .. }),
            "{error}"
        );
    }
}

#[test]
fn every_bad_header_is_named() {
    type Change = fn(&mut Vec<u8>);
    let table: [(Change, &str); 19] = [
        (|b| b[0] = 0, "not a qcow2 image"),
        (|b| b.truncate(3), "not a qcow2 image"),
        (
            |b| b.truncate(71),
            "cut short: the header ends at byte 72, the file at byte 71",
        ),
        (|b| put32(b, 4, 4), "version 4"),
        (|b| put32(b, 20, 8), "cluster_bits is 8"),
        (|b| put32(b, 20, 200), "cluster_bits is 200"),
        (|b| put32(b, 100, 96), "header_length is 96"),
        (|b| put32(b, 96, 7), "refcount_order is 7"),
        (
            |b| put64(b, 24, 1 << 50),
            "more than the 1073741824 allowed",
        ),
        (|b| put32(b, 36, 0), "l1_size is 0"),
        (|b| put32(b, 36, u32::MAX), "l1_size is 4294967295"),
        (|b| put64(b, 40, 513), "l1_table_offset is 513"),
        (|b| put64(b, 40, 1 << 40), "cut short: the L1 table"),
        (
            |b| put64(b, 40, 0u64.wrapping_sub(512)),
            "cut short: the L1 table",
        ),
        (|b| put32(b, 32, 2), "encrypted (LUKS)"),
        (|b| put64(b, 72, 2), "marked as corrupt"),
        (|b| put64(b, 72, 1 << 40), "bit 40"),
        (|b| put64(b, 72, 16), "cluster_bits is 9"),
        (|b| put32(b, 60, 70000), "nb_snapshots is 70000"),
    ];
    for (change, text) in table {
        let mut bytes = image(&[]);
        change(&mut bytes);
        let error = convert(bytes).unwrap_err().to_string();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    }
}

#[test]
fn other_files_are_named_and_never_opened() {
    let mut bytes = image(&[]);
    put64(&mut bytes, 8, 400);
    put32(&mut bytes, 16, 11);
    bytes[400..411].copy_from_slice(b"/etc/passwd");
    for (format, expected) in [(&b""[..], None), (b"raw", Some("raw"))] {
        put32(&mut bytes, 112, 0xe279_2aca);
        put32(&mut bytes, 116, format.len() as u32);
        bytes[120..120 + format.len()].copy_from_slice(format);
        let backing = Header::read(&bytes, LIMIT).unwrap().backing.unwrap();
        assert_eq!(backing.format.as_deref(), expected);
    }
    assert!(matches!(convert(bytes), Err(Qcow2Error::BackingFile(name)) if name == "/etc/passwd"));
    let mut bytes = image(&[]);
    put64(&mut bytes, 72, 4);
    put32(&mut bytes, 112, 0x4441_5441);
    put32(&mut bytes, 116, 4);
    bytes[120..124].copy_from_slice(b"data");
    assert!(matches!(convert(bytes), Err(Qcow2Error::DataFile(name)) if name == "data"));
    let mut bytes = image(&[]);
    put64(&mut bytes, 72, 1 << 5);
    put32(&mut bytes, 112, 0x6803_f857);
    put32(&mut bytes, 116, 48);
    bytes[121] = 5;
    bytes[122..127].copy_from_slice(b"magic");
    assert_eq!(
        convert(bytes).unwrap_err().to_string(),
        "the image needs features that are not supported: \"magic\" (bit 5)"
    );
}

#[test]
fn every_bad_entry_is_an_error_with_its_place() {
    let table: [(u64, u32, &str); 6] = [
        (3 * 512 + 512 / 2 * 2 + (1 << 40), 3, "cut short: a cluster"),
        (1, 2, "a zero cluster in a version 2 image"),
        (1 << 62 | 1 << 45, 3, "cut short: a compressed cluster"),
        (
            (1 << 62) | (3 * 512),
            3,
            "compressed cluster for guest byte 0 (at byte 1536",
        ),
        (1 << 62 | 0x1f_ffff_ffff_ffff, 3, "cut short"),
        (0x00ff_ffff_ffff_fe00, 3, "cut short"),
    ];
    for (entry, version, text) in table {
        let mut bytes = image(&[entry]);
        put32(&mut bytes, 4, version);
        let error = convert(bytes).unwrap_err().to_string();
        assert!(
            error.contains(text),
            "{entry:x}: {error:?} does not say {text:?}"
        );
    }
    let mut bytes = image(&[]);
    put64(&mut bytes, 512, 1 << 50);
    assert!(
        convert(bytes)
            .unwrap_err()
            .to_string()
            .contains("cut short: an L2 table")
    );
}

#[test]
fn a_cut_image_is_told_from_one_whose_last_zeros_were_left_out() {
    let entry = 15 * CLUSTER as u64;
    let mut bytes = image(&[entry]);
    bytes[15 * CLUSTER..].fill(0xe1);
    bytes.truncate(15 * CLUSTER + 100);
    assert!(matches!(convert(bytes), Err(Qcow2Error::Truncated { .. })));
    let mut bytes = image(&[entry]);
    bytes.truncate(15 * CLUSTER);
    assert!(matches!(convert(bytes), Err(Qcow2Error::Truncated { .. })));
}

#[test]
fn a_cancelled_conversion_says_so() {
    let mut bytes = image(&[]);
    put64(&mut bytes, 24, 0);
    assert!(convert(bytes).unwrap().is_empty());
}
