use super::*;

fn platform(architecture: &str) -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: None,
    }
}

fn digest(byte: &str) -> String {
    format!("sha256:{}", byte.repeat(32))
}

#[test]
fn an_index_as_docker_hub_sends_it() {
    let (first, second, third) = (digest("aa"), digest("bb"), digest("cc"));
    let text = format!(
        r#"{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "manifests": [
            {{"mediaType": "{OCI_MANIFEST}", "digest": "{first}", "size": 1, "platform": {{"os": "linux", "architecture": "arm64", "variant": "v8"}}}},
            {{"mediaType": "{OCI_MANIFEST}", "digest": "{second}", "size": 2, "platform": {{"os": "unknown", "architecture": "unknown"}}}},
            {{"mediaType": "{OCI_MANIFEST}", "digest": "{third}", "size": 3, "annotations": {{"a": "b"}}, "platform": {{"os": "linux", "architecture": "amd64"}}}}
        ]}}"#
    );
    let Ok(Document::Index(index)) = Document::parse(text.as_bytes(), Some(OCI_INDEX)) else {
        panic!("no index");
    };
    let chosen = |name: &str| {
        index
            .choose(&platform(name))
            .map(|found| found.digest.to_string())
    };
    assert_eq!(chosen("amd64").unwrap(), third);
    assert_eq!(chosen("arm64").unwrap(), first);
    let error = chosen("s390x").unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no image for linux/s390x, only for linux/arm64/v8, linux/amd64"
    );
}

#[test]
fn what_a_document_is_must_be_told_in_one_way() {
    let manifest = format!(
        r#"{{"schemaVersion": 2, "config": {{"mediaType": "{DOCKER_CONFIG}", "digest": "{}", "size": 1}}, "layers": []}}"#,
        digest("aa")
    );
    let parse = |text: &str, kind: Option<&str>| Document::parse(text.as_bytes(), kind);
    for kind in [
        None,
        Some(OCI_MANIFEST),
        Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
        Some("application/octet-stream"),
    ] {
        assert!(
            matches!(parse(&manifest, kind), Ok(Document::Manifest(_))),
            "{kind:?}"
        );
    }
    let named = manifest.replace(
        "\"config\"",
        &format!("\"mediaType\": \"{OCI_INDEX}\", \"config\""),
    );
    let table = [
        (manifest.as_str(), Some(DOCKER_LIST), "is called"),
        (&named, None, "is called"),
        ("{}", None, "schemaVersion"),
        (
            r#"{"schemaVersion": 2}"#,
            None,
            "neither layers nor manifests",
        ),
        (
            r#"{"schemaVersion": 2, "layers": []}"#,
            None,
            "neither layers",
        ),
        (r#"{"schemaVersion": 1}"#, None, "schema 1"),
        ("[", None, "makes no sense"),
        ("", None, "makes no sense"),
    ];
    for (text, kind, expected) in table {
        let error = parse(text, kind).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let wrong = manifest.replace(&digest("aa"), "sha256:aa");
    assert!(parse(&wrong, None).is_err());
    let negative = manifest.replace("\"size\": 1", "\"size\": -1");
    assert!(parse(&negative, None).is_err());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(&deep, None).is_err());
}

#[test]
fn a_configuration_is_read_for_its_machine_and_layers() {
    let text = format!(
        r#"{{"architecture": "arm", "variant": "v7", "os": "linux", "rootfs": {{"type": "layers", "diff_ids": ["{}"]}}, "history": []}}"#,
        digest("bb")
    );
    let config = ImageConfig::parse(text.as_bytes()).unwrap();
    assert_eq!(config.platform.to_string(), "linux/arm/v7");
    assert_eq!(config.diff_ids.len(), 1);
    for bad in ["{}", r#"{"rootfs": {"diff_ids": ["x"]}}"#, "7"] {
        assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}
