//! Any text as a reference, name or digest: never a panic; what is printed parses to the same again; no password or
//! query value is printed; and no name of a file made from it leads anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nspawn_image::oci::OciReference;
use nspawn_image::{Digest, ImageName, ImageRef, ImageUrl};

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
        is_plain(&digest.to_string());
    }
    let name = ImageName::sanitize(text);
    is_plain(name.as_str());
    assert_eq!(name.as_str().parse().as_ref(), Ok(&name));
    if let Ok(parsed) = text.parse::<ImageName>() {
        assert_eq!(
            (parsed.as_str(), &parsed),
            (text, &name),
            "a name stays as it is"
        );
    }
    match text.parse::<ImageRef>() {
        Ok(ImageRef::Url(url)) => check_url(text, &url),
        Ok(reference) => {
            let shown = reference.to_string();
            assert_eq!(shown.parse().as_ref(), Ok(&reference), "{shown:?}");
            match reference {
                ImageRef::Name(name) => is_plain(name.as_str()),
                ImageRef::Oci(image) => check_oci(&image),
                _ => {}
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(image) = text.parse::<OciReference>() {
        check_oci(&image);
    }
});

/// A file of this name stands where it is put.
fn is_plain(name: &str) {
    assert!(!name.is_empty() && name != "." && name != "..", "{name:?}");
    assert!(!name.contains(['/', '\0']), "{name:?}");
}

fn check_url(text: &str, url: &ImageUrl) {
    let shown = url.to_string();
    let again: ImageUrl = shown.parse().expect("a printed URL is one");
    assert_eq!(again.to_string(), shown, "redacting twice changes nothing");
    assert_eq!(format!("{url:?}"), format!("ImageUrl({shown})"));
    assert_eq!(
        (again.host(), again.file_name()),
        (url.host(), url.file_name())
    );
    let name = url.file_name();
    assert!(
        name != "." && name != ".." && !name.contains(['/', '\0']),
        "{name:?}"
    );
    // Words that nothing else of the URL holds.
    let secret_url = url::Url::parse(text).expect("the same URL");
    let pairs = secret_url
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'));
    let (keys, values): (Vec<&str>, Vec<&str>) =
        pairs.filter_map(|pair| pair.split_once('=')).unzip();
    let mut open = secret_url.clone();
    open.set_query(None);
    open.set_fragment(None);
    let _ = (open.set_username(""), open.set_password(None));
    let mut secrets = values;
    secrets.extend([
        secret_url.username(),
        secret_url.password().unwrap_or_default(),
    ]);
    for secret in secrets {
        let is_word = secret.len() > 3 && secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let elsewhere =
            open.as_str().contains(secret) || keys.iter().any(|key| key.contains(secret));
        assert!(
            !is_word || elsewhere || !shown.contains(secret),
            "{shown} shows {secret:?}"
        );
    }
}

fn check_oci(image: &OciReference) {
    let shown = image.to_string();
    assert_eq!(shown.parse().as_ref(), Ok(image), "{shown:?}");
    let prefixed = format!("oci:{shown}");
    assert_eq!(prefixed.parse(), Ok(ImageRef::Oci(image.clone())));
    for part in image.repository().split('/') {
        is_plain(part);
    }
    if let Some(tag) = image.tag() {
        is_plain(tag);
    }
    assert!(!image.registry().contains('/') && !image.endpoint().is_empty());
}
