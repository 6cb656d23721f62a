use super::*;

fn explain(source: io::Error) -> UnpackError {
    UnpackError::Damaged {
        format: "tar",
        source,
    }
}

/// A header with everything at its usual value.
fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_cksum();
    header
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn made(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [
        length.to_string().as_bytes(),
        b" ",
        key.as_bytes(),
        b"=",
        value,
        b"\n",
    ]
    .concat()
}

/// An extended header and the file that it is of.
fn with_pax(records: &[(&str, &[u8])], name: &str, content: &[u8]) -> Vec<u8> {
    let records: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| made(key, value))
        .collect();
    let mut archive = header(EntryType::XHeader, "pax", records.len() as u64)
        .as_bytes()
        .to_vec();
    archive.extend(padded(records));
    archive.extend(header(EntryType::Regular, name, content.len() as u64).as_bytes());
    archive.extend(padded(content.to_vec()));
    archive
}

/// Every entry, and its content with the holes as zeros.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, UnpackError> {
    let mut archive = Archive::new(archive, explain);
    let mut found = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = vec![0; usize::try_from(entry.size).unwrap().min(1 << 20)];
        let mut buffer = [0; 700];
        while let Some((at, count)) = archive.read(&entry, &mut buffer)? {
            content[at as usize..at as usize + count].copy_from_slice(&buffer[..count]);
        }
        found.push((entry, content));
    }
    Ok(found)
}

fn message(result: Result<Vec<(Entry, Vec<u8>)>, UnpackError>) -> String {
    let error = result.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

#[test]
fn every_version_of_a_sparse_file_in_the_pax_format() {
    // Data at 1024 and at 4096, the second 5 bytes long; 10000 bytes in all.
    let mut data = vec![b'a'; 512];
    data.extend(b"tail!");
    let mut expected = vec![0; 10_000];
    expected[1024..1536].fill(b'a');
    expected[4096..4101].copy_from_slice(b"tail!");
    let old: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"1024"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"5"),
    ];
    let listed: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.name", b"disk.raw"),
        ("GNU.sparse.map", b"1024,512,4096,5"),
    ];
    let newest: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"disk.raw"),
        ("GNU.sparse.realsize", b"10000"),
    ];
    let mut with_map = padded(b"2\n1024\n512\n4096\n5\n".to_vec());
    with_map.extend(&data);
    for (records, content) in [(old, &data), (listed, &data), (newest, &with_map)] {
        let name = if records == old {
            "disk.raw"
        } else {
            "GNUSparseFile.1/disk.raw"
        };
        let mut archive = with_pax(records, name, content);
        archive.extend(header(EntryType::Regular, "next", 0).as_bytes());
        let found = read(&archive).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0.name, b"disk.raw");
        assert_eq!(found[0].0.size, 10_000);
        assert!(found[0].1 == expected, "{records:?}");
    }
}

#[test]
fn a_map_that_cannot_be_right_is_refused() {
    let with = |size: &'static [u8], map: &'static [u8]| {
        with_pax(
            &[("GNU.sparse.size", size), ("GNU.sparse.map", map)],
            "f",
            &[1; 517],
        )
    };
    read(&with(b"9999", b"0,512,4096,5")).unwrap();
    for (size, map) in [
        (&b"9999"[..], &b"4096,512,0,5"[..]),
        (b"9999", b"0,512,100,5"),
        (b"9999", b"0,512,4096,6"),
        (b"9999", b"0,512"),
        (b"9999", b"0,5,4096,512"),
        (b"4100", b"0,512,4096,5"),
        (b"18446744073709551615", b"0,512,18446744073709551615,5"),
        (b"9223372036854775808", b"0,512,4096,5"),
    ] {
        let error = message(read(&with(size, map)));
        assert!(error.contains("a map of its holes"), "{map:?}: {error}");
    }
    for (map, text) in [
        (&b"0,512,4096"[..], "without its length"),
        (b"0,x", "no number"),
        (b"0,-5", "no number"),
    ] {
        let error = message(read(&with(b"9999", map)));
        assert!(error.contains(text), "{error}");
    }
    let newest = |content: &[u8]| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9"),
        ];
        message(read(&with_pax(records, "f", content)))
    };
    assert!(newest(b"1\n0\n").contains("unfinished map"));
    assert!(newest(&padded(b"99999999\n".to_vec())).contains("too many pieces"));
    assert!(newest(&padded(b"99999999999999999999\n".to_vec())).contains("number too large"));
    assert!(newest(&padded(b"\n".to_vec())).contains("no list of numbers"));
    let error = message(read(&with_pax(&[("GNU.sparse.major", b"2")], "f", b"")));
    assert!(error.contains("version 2.0"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_before_it_costs_anything() {
    let mut sum = header(EntryType::Regular, "a", 0).as_bytes().to_vec();
    sum[0] = b'b';
    let huge = header(EntryType::XHeader, "pax", 1 << 33)
        .as_bytes()
        .to_vec();
    let cut = header(EntryType::Regular, "a", 700).as_bytes().to_vec();
    let dangling = [
        header(EntryType::XHeader, "pax", 0).as_bytes().to_vec(),
        vec![0; 1024],
    ]
    .concat();
    let twice = [
        header(EntryType::XHeader, "pax", 0).as_bytes().to_vec(),
        header(EntryType::XHeader, "pax", 0).as_bytes().to_vec(),
    ]
    .concat();
    let lying = header(EntryType::Symlink, "a", 512).as_bytes().to_vec();
    let mut longest = header(EntryType::Regular, "a", 0);
    longest.as_old_mut().size = [0xff; 12];
    longest.set_cksum();
    let table: [(Vec<u8>, &str); 9] = [
        (vec![7; 512], "numeric"),
        (vec![7; 100], "unexpected end"),
        (sum, "wrong checksum"),
        (huge, "extended header of 8589934592 bytes"),
        (cut, "unexpected end"),
        (dangling, "after an extended header"),
        (twice, "two extended headers"),
        (lying, "has a length and is no file"),
        (longest.as_bytes().to_vec(), "longer than any file"),
    ];
    for (archive, text) in table {
        let error = message(read(&archive));
        assert!(error.contains(text), "{text}: {error}");
    }
    assert!(read(&[]).unwrap().is_empty());
    assert!(read(&[0; 2048]).unwrap().is_empty());
}

#[test]
fn records_are_stronger_than_headers_and_the_own_stronger_than_the_global() {
    let global = made("uid", b"70000");
    let mut archive = header(EntryType::XGlobalHeader, "g", global.len() as u64)
        .as_bytes()
        .to_vec();
    archive.extend(padded(global));
    let long = "x".repeat(300);
    archive.extend(with_pax(
        &[
            ("path", long.as_bytes()),
            ("size", b"3"),
            ("gid", b"80000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a", b"\0binary\n"),
        ],
        "short",
        b"abc",
    ));
    archive.extend(header(EntryType::Regular, "folder/", 0).as_bytes());
    let mut blank = header(EntryType::Regular, "blank", 0);
    blank.as_old_mut().uid = [0; 8];
    blank.as_old_mut().mtime = [b' '; 12];
    blank.set_cksum();
    archive.extend(blank.as_bytes());
    let found = read(&archive).unwrap();
    let first = &found[0].0;
    assert_eq!(
        (first.name.len(), first.owner, first.time),
        (300, (70_000, 80_000), (-2, 500_000_000))
    );
    assert_eq!(first.xattrs, [(b"user.a".to_vec(), b"\0binary\n".to_vec())]);
    assert_eq!(found[0].1, b"abc");
    assert_eq!(
        (found[1].0.kind, found[1].0.owner),
        (EntryType::Directory, (70_000, 2))
    );
    assert_eq!(found[2].0.time, (0, 0));
    for records in [
        &b"5 a=b"[..],
        b"6 a=b\n",
        b"99 a=b\n",
        b"a=b\n",
        b"6 a b\n",
        b"0 \n",
        b" ",
        b"2 ",
    ] {
        let mut pax = Pax::default();
        let whole = records == b"6 a=b\n";
        assert_eq!(pax.read(records).is_ok(), whole, "{records:?}");
    }
    for (text, expected) in [
        (&b"1"[..], Some((1, 0))),
        (b"1.25", Some((1, 250_000_000))),
        (b"1.1234567899", Some((1, 123_456_789))),
        (b"-0.25", Some((-1, 750_000_000))),
        (b"9999999999999999999", None),
        (b"1.x", None),
        (b"", None),
    ] {
        assert_eq!(time(text).ok(), expected, "{text:?}");
    }
}
