//! OpenPGP signatures over checksum files and images, checked against keys that this host trusts.
//!
//! A keyring is trusted as a whole, as gpgv(1) and systemd-importd do: whose key it is is not asked. What its owner
//! says of a key is: expired, revoked, and which subkeys may sign. Self-signatures may rest on SHA-1, as those of
//! keys from before 2015 do; signatures over what is downloaded may not.
//!
//! Source: RFC 9580, 5.2 (signatures), 10.1 (keys and what binds their parts); gpgv(1).

use std::cmp::Reverse;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pgp::armor::Dearmor;
use pgp::composed::{Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    PacketParser, PacketTrait as _, PublicKey, Signature, SignatureType, SubpacketData,
};
use pgp::types::{Fingerprint, KeyDetails as _, Tag};

use super::checksum_file::ClearText;
use super::error::VerifyError;
use crate::error::{ImageError, PathContext};

/// Where systemd-importd looks for keys; of those that exist all are read.
const DEFAULT_KEYRINGS: [&str; 4] = [
    "/etc/systemd/import-pubring.gpg",
    "/etc/systemd/import-pubring.pgp",
    "/usr/lib/systemd/import-pubring.gpg",
    "/usr/lib/systemd/import-pubring.pgp",
];
/// The largest keyring read, in bytes; a distribution's whole keyring has some MB.
const KEYRING_LIMIT: u64 = 64 << 20;
/// The largest signature that is read, in bytes.
pub(super) const SIGNATURE_LIMIT: u64 = 256 << 10;
/// Most packets of one file: of a whole distribution's keyring most are signatures.
const MOST_PACKETS: usize = 1_000_000;
/// Most keys of one file.
const MOST_KEYS: usize = 10_000;
/// Most signatures of one file: each takes a reading of what is signed.
const MOST_SIGNATURES: usize = 16;
/// How far the clocks of a publisher and this host may differ, in seconds.
const SKEW: u64 = 24 * 60 * 60;
const ARMOUR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// Public keys that signatures are checked with.
///
/// All of them are trusted alike. A key that has expired, was revoked or may not sign makes no good signature.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
    files: Vec<PathBuf>,
    /// Seconds since 1970.
    now: u64,
}

/// The signatures of one file.
#[derive(Clone, Debug)]
pub(crate) struct Signatures {
    /// The file, redacted.
    pub(crate) file: String,
    all: Vec<Signature>,
}

/// What was signed and who signed it.
#[derive(Debug)]
pub(super) struct ClearSigned {
    /// The text under the signature, without dash escapes.
    pub(super) text: String,
    pub(super) signatures: Signatures,
}

/// A key that may sign now, or what it may not.
enum Part<'a> {
    Primary(&'a SignedPublicKey),
    Subkey(&'a SignedPublicKey, &'a SignedPublicSubKey),
}

impl Keyring {
    /// Reads `paths`; where none is given, systemd's own keyrings, those that exist.
    pub(super) fn load(paths: &[PathBuf], what: &dyn ToString) -> Result<Self, ImageError> {
        let defaults = DEFAULT_KEYRINGS.iter().map(PathBuf::from);
        let files: Vec<PathBuf> = if paths.is_empty() {
            defaults.filter(|path| path.exists()).collect()
        } else {
            paths.to_vec()
        };
        let mut keys = Vec::new();
        for path in &files {
            keys.extend(read_keys(path, what)?);
        }
        Ok(Self::new(keys, files))
    }

    fn new(keys: Vec<SignedPublicKey>, files: Vec<PathBuf>) -> Self {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        Self { keys, files, now }
    }

    /// Reads keys: binary, or any number of armoured blocks one after another.
    ///
    /// # Errors
    ///
    /// [`VerifyError::Keyring`] where no public key is among the bytes. Never panics, whatever they hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        let path = PathBuf::from("keyring");
        match parse_keys(bytes) {
            Ok(keys) => Ok(Self::new(keys, vec![path])),
            Err(reason) => Err(VerifyError::Keyring {
                path,
                reason: reason.to_owned(),
            }),
        }
    }

    /// Checks that a detached signature, armoured or binary, is a good one of `data` by a key that is here and may
    /// sign; answers with the key's fingerprint.
    ///
    /// # Errors
    ///
    /// See [`VerifyError`]. Never panics, whatever the bytes hold.
    pub fn check_detached(&self, signature: &[u8], data: &[u8]) -> Result<String, VerifyError> {
        let file = "signature";
        let signatures = Signatures::parse(signature, file).ok_or_else(|| none_in(file))??;
        self.verify(&signatures, &|| data)
    }

    /// Checks the signature of a clear-signed text, as [`check_detached`](Self::check_detached) does; answers with the
    /// text that is signed, its lines ended by `\r\n`, and the key's fingerprint. What stands around it is left out.
    ///
    /// # Errors
    ///
    /// See [`VerifyError`]. Never panics, whatever the bytes hold.
    pub fn check_clear_signed(&self, bytes: &[u8]) -> Result<(String, String), VerifyError> {
        let file = "signed text";
        let signed = ClearSigned::parse(bytes, file).ok_or_else(|| none_in(file))??;
        let key = self.verify(&signed.signatures, &|| signed.text.as_bytes())?;
        Ok((signed.text, key))
    }

    /// Whether one of the signatures is by a key that is here and may sign, before any data is there.
    pub(super) fn can_check(&self, signatures: &Signatures) -> Result<(), VerifyError> {
        first_good(signatures, |signature| {
            let parts = self.parts(signature, &signatures.file)?;
            let usable = parts
                .iter()
                .map(|part| self.judge(part, signature, &signatures.file));
            first(usable, &signatures.file).map(|()| String::new())
        })
        .map(drop)
    }

    /// Checks that one of the signatures is a good one of the data by a key that is here and may sign; answers with
    /// the fingerprint of its key. `data` is opened anew for each try.
    pub(super) fn verify<R: Read>(
        &self,
        signatures: &Signatures,
        data: &dyn Fn() -> R,
    ) -> Result<String, VerifyError> {
        let file = &signatures.file;
        first_good(signatures, |signature| {
            let parts = self.parts(signature, file)?;
            // The same key may stand in two keyrings, and be renewed in one of them.
            let tried = parts.iter().map(|part| {
                let key = part.fingerprint();
                if !part.verifies(signature, data()) {
                    let file = file.clone();
                    return Err(VerifyError::BadSignature { file, key });
                }
                self.judge(part, signature, file).map(|()| key)
            });
            first(tried, file)
        })
    }

    /// The keys that may have made a signature; never none.
    fn parts(&self, signature: &Signature, file: &str) -> Result<Vec<Part<'_>>, VerifyError> {
        let malformed = |reason: &str| VerifyError::Malformed {
            file: file.to_owned(),
            reason: reason.to_owned(),
        };
        let Some(hash) = signature.hash_alg() else {
            return Err(malformed("its version is not supported"));
        };
        let binary_or_text = [SignatureType::Binary, SignatureType::Text].map(Some);
        if !binary_or_text.contains(&signature.typ()) {
            return Err(malformed("it signs no file"));
        }
        if !is_strong(hash) {
            return Err(VerifyError::WeakHash {
                file: file.to_owned(),
                hash: hash.to_string(),
            });
        }
        let mut parts = Vec::new();
        for key in &self.keys {
            let subkeys = key.public_subkeys.iter();
            let all = std::iter::once(Part::Primary(key))
                .chain(subkeys.map(|subkey| Part::Subkey(key, subkey)));
            parts.extend(all.filter(|part| part.is_issuer_of(signature)));
        }
        if !parts.is_empty() {
            return Ok(parts);
        }
        let (file, key) = (file.to_owned(), issuer(signature));
        if self.keys.is_empty() {
            return Err(VerifyError::NoKeyring { file, key });
        }
        let keyrings = self.files.iter().map(|path| path.display().to_string());
        Err(VerifyError::NoKey {
            file,
            key,
            keyrings: keyrings.collect(),
        })
    }

    /// Whether the key may sign, and the signature still holds.
    fn judge(&self, part: &Part<'_>, signature: &Signature, file: &str) -> Result<(), VerifyError> {
        let (file, key) = (file.to_owned(), part.fingerprint());
        match part.standing(self.now) {
            Standing::Good => {}
            Standing::Revoked => return Err(VerifyError::KeyRevoked { file, key }),
            Standing::Expired => return Err(VerifyError::KeyExpired { file, key }),
            Standing::Unfit(reason) => return Err(VerifyError::KeyUnfit { file, key, reason }),
        }
        let malformed = |reason: &str| VerifyError::Malformed {
            file: file.clone(),
            reason: reason.to_owned(),
        };
        let Some(created) = created(signature) else {
            return Err(malformed("it does not say when it was made"));
        };
        if created > self.now + SKEW {
            return Err(malformed(
                "it was made in the future, by this machine's clock",
            ));
        }
        if created < part.created_at() {
            return Err(malformed("it is older than its key"));
        }
        if has_expired(signature, self.now) {
            return Err(VerifyError::SignatureExpired { file, key });
        }
        Ok(())
    }
}

/// What can be said of a key at a time.
enum Standing {
    Good,
    Revoked,
    Expired,
    /// It completes "which …".
    Unfit(&'static str),
}

impl Part<'_> {
    fn fingerprint(&self) -> String {
        let fingerprint = match self {
            Self::Primary(key) => key.primary_key.fingerprint(),
            Self::Subkey(_, subkey) => subkey.key.fingerprint(),
        };
        shown(&fingerprint)
    }

    fn created_at(&self) -> u64 {
        let created = match self {
            Self::Primary(key) => key.primary_key.created_at(),
            Self::Subkey(_, subkey) => subkey.key.created_at(),
        };
        created.as_secs().into()
    }

    /// Whether the signature names this key, or none.
    fn is_issuer_of(&self, signature: &Signature) -> bool {
        let (fingerprint, id) = match self {
            Self::Primary(key) => (
                key.primary_key.fingerprint(),
                key.primary_key.legacy_key_id(),
            ),
            Self::Subkey(_, subkey) => (subkey.key.fingerprint(), subkey.key.legacy_key_id()),
        };
        let fingerprints = signature.issuer_fingerprint();
        if !fingerprints.is_empty() {
            return fingerprints.contains(&&fingerprint);
        }
        let ids = signature.issuer_key_id();
        ids.is_empty() || ids.contains(&&id)
    }

    fn verifies(&self, signature: &Signature, data: impl Read) -> bool {
        match self {
            Self::Primary(key) => signature.verify(&key.primary_key, data),
            Self::Subkey(_, subkey) => signature.verify(&subkey.key, data),
        }
        .is_ok()
    }

    fn standing(&self, now: u64) -> Standing {
        match self {
            Self::Primary(key) => primary_standing(key, now, true),
            Self::Subkey(key, subkey) => match primary_standing(key, now, false) {
                Standing::Good => subkey_standing(&key.primary_key, subkey, now),
                other => other,
            },
        }
    }
}

/// What the owner of a whole key says of it; `signs` where the primary key itself made the signature.
fn primary_standing(key: &SignedPublicKey, now: u64, signs: bool) -> Standing {
    let primary = &key.primary_key;
    let details = &key.details;
    // Only its own: a revoker that the key names would have to be in the keyring, and none of the publishers has one.
    if details
        .revocation_signatures
        .iter()
        .any(|signature| signature.verify_key(primary).is_ok())
    {
        return Standing::Revoked;
    }
    let direct = details.direct_signatures.iter().filter(|signature| {
        signature.typ() == Some(SignatureType::Key) && signature.verify_key(primary).is_ok()
    });
    let users = details.users.iter().flat_map(|user| {
        let own = |signature: &&Signature| {
            let verified = signature.verify_certification(primary, Tag::UserId, &user.id);
            verified.is_ok()
        };
        let (revoked, certified): (Vec<_>, Vec<_>) = user
            .signatures
            .iter()
            .filter(own)
            .partition(|signature| signature.typ() == Some(SignatureType::CertRevocation));
        let revoked = revoked.into_iter().filter_map(created).max();
        certified
            .into_iter()
            .filter(move |signature| created(signature) > revoked)
    });
    // Either kind may leave out what the other says: version 6 keys have it in the one, older keys in the other.
    let mut says: Vec<&Signature> = [newest(direct, now), newest(users, now)]
        .into_iter()
        .flatten()
        .collect();
    if says.is_empty() {
        return Standing::Unfit("its owner has not signed");
    }
    says.sort_by_key(|signature| Reverse(created(signature)));
    let expires = says
        .iter()
        .find(|signature| signature.key_expiration_time().is_some());
    if expires.is_some_and(|says| key_has_expired(primary.created_at().as_secs(), says, now)) {
        return Standing::Expired;
    }
    let use_of_it = says.iter().find(|signature| says_use(signature));
    if signs && use_of_it.is_some_and(|says| !may_sign(says)) {
        return Standing::Unfit("is not meant to sign");
    }
    Standing::Good
}

/// What the primary key says of a subkey, and that the subkey says the same: else anybody's signing key could be
/// claimed. Source: RFC 9580, 5.2.1.9.
fn subkey_standing(primary: &PublicKey, subkey: &SignedPublicSubKey, now: u64) -> Standing {
    let by_primary = |kind: SignatureType| {
        subkey.signatures.iter().filter(move |signature| {
            signature.typ() == Some(kind)
                && signature
                    .verify_subkey_binding(primary, &subkey.key)
                    .is_ok()
        })
    };
    if by_primary(SignatureType::SubkeyRevocation).next().is_some() {
        return Standing::Revoked;
    }
    let Some(binding) = newest(by_primary(SignatureType::SubkeyBinding), now) else {
        return Standing::Unfit("is not bound to the key it stands with");
    };
    if key_has_expired(subkey.key.created_at().as_secs(), binding, now) {
        return Standing::Expired;
    }
    if !may_sign(binding) {
        return Standing::Unfit("is not meant to sign");
    }
    let back = binding.embedded_signature();
    if !back.is_some_and(|back| {
        back.verify_primary_key_binding(&subkey.key, primary)
            .is_ok()
    }) {
        return Standing::Unfit("does not confirm the key it stands with");
    }
    Standing::Good
}

/// The newest of signatures that hold now.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>, now: u64) -> Option<&'a Signature> {
    signatures
        .filter(|signature| created(signature).is_some_and(|created| created <= now + SKEW))
        .filter(|signature| !has_expired(signature, now))
        .max_by_key(|signature| created(signature))
}

/// In seconds since 1970.
fn created(signature: &Signature) -> Option<u64> {
    signature.created().map(|time| time.as_secs().into())
}

fn has_expired(signature: &Signature, now: u64) -> bool {
    let lifetime = signature.signature_expiration_time();
    let lifetime = lifetime.map_or(0, |lifetime| u64::from(lifetime.as_secs()));
    lifetime > 0 && created(signature).unwrap_or(0) + lifetime <= now
}

fn key_has_expired(created: u32, says: &Signature, now: u64) -> bool {
    let lifetime = says.key_expiration_time();
    let lifetime = lifetime.map_or(0, |lifetime| u64::from(lifetime.as_secs()));
    lifetime > 0 && u64::from(created) + lifetime <= now
}

/// A key whose owner says nothing of its use may sign. Source: RFC 9580, 5.2.3.29.
fn may_sign(says: &Signature) -> bool {
    !says_use(says) || says.key_flags().sign()
}

fn says_use(signature: &Signature) -> bool {
    let subpackets = signature.config().into_iter();
    subpackets
        .flat_map(|config| config.hashed_subpackets())
        .any(|subpacket| matches!(subpacket.data, SubpacketData::KeyFlags(_)))
}

fn is_strong(hash: HashAlgorithm) -> bool {
    matches!(
        hash,
        HashAlgorithm::Sha224
            | HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512
    )
}

fn shown(fingerprint: &Fingerprint) -> String {
    format!("{fingerprint:X}")
}

/// Who made a signature by its own words.
fn issuer(signature: &Signature) -> String {
    if let Some(fingerprint) = signature.issuer_fingerprint().first() {
        return shown(fingerprint);
    }
    match signature.issuer_key_id().first() {
        Some(id) => id.to_string().to_uppercase(),
        None => "it does not name".to_owned(),
    }
}

/// The first result that is good, or the error that says most: a signature by a known key goes before one by an
/// unknown key.
fn first<T>(
    results: impl Iterator<Item = Result<T, VerifyError>>,
    file: &str,
) -> Result<T, VerifyError> {
    let mut worst: Option<VerifyError> = None;
    for result in results {
        match result {
            Ok(good) => return Ok(good),
            Err(error) if worst.as_ref().is_none_or(VerifyError::is_unknown) => worst = Some(error),
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or_else(|| none_in(file)))
}

fn none_in(file: &str) -> VerifyError {
    VerifyError::Malformed {
        file: file.to_owned(),
        reason: "it holds no signature".to_owned(),
    }
}

fn first_good(
    signatures: &Signatures,
    check: impl FnMut(&Signature) -> Result<String, VerifyError>,
) -> Result<String, VerifyError> {
    first(signatures.all.iter().map(check), &signatures.file)
}

impl Signatures {
    /// Reads detached signatures, armoured or binary; `None` where the bytes do not even look like one, as a page
    /// that a server sends in place of "not found".
    pub(super) fn parse(bytes: &[u8], file: &str) -> Option<Result<Self, VerifyError>> {
        let is_binary = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
        if !is_binary && !has_line(bytes, "-----BEGIN PGP SIGNATURE-----") {
            return None;
        }
        let read = || -> Result<Vec<Signature>, pgp::errors::Error> {
            let (found, _) = DetachedSignature::from_reader_many(bytes)?;
            found
                .take(MOST_SIGNATURES)
                .map(|found| found.map(|found| found.signature))
                .collect()
        };
        Some(Self::new(read(), file))
    }

    fn new(
        found: Result<Vec<Signature>, pgp::errors::Error>,
        file: &str,
    ) -> Result<Self, VerifyError> {
        let file = file.to_owned();
        match found {
            Ok(all) => Ok(Self { file, all }),
            Err(error) => Err(VerifyError::Malformed {
                file,
                reason: error.to_string(),
            }),
        }
    }
}

impl ClearSigned {
    /// Reads a clear-signed text; `None` where it is not one. What stands before or after it is left out.
    pub(super) fn parse(bytes: &[u8], file: &str) -> Option<Result<Self, VerifyError>> {
        let malformed = |reason: String| VerifyError::Malformed {
            file: file.to_owned(),
            reason,
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) if has_line(bytes, "-----BEGIN PGP SIGNED MESSAGE-----") => {
                return Some(Err(malformed(error.to_string())));
            }
            Err(_) => return None,
        };
        let parts = match ClearText::find(text)? {
            Ok(parts) => parts,
            Err(error) => return Some(Err(malformed(error.to_string()))),
        };
        let armour = parts.armour.as_bytes();
        let armour = &armour[..armour.len().min(SIGNATURE_LIMIT as usize)];
        let signatures = Signatures::parse(armour, file)?;
        Some(signatures.map(|signatures| {
            // What was signed has no white space at the ends of lines, and no end of line at its own end.
            let lines = parts.lines().map(|line| line.trim_end_matches([' ', '\t']));
            let lines: Vec<&str> = lines.collect();
            Self {
                text: lines.join("\r\n"),
                signatures,
            }
        }))
    }
}

fn has_line(bytes: &[u8], line: &str) -> bool {
    bytes
        .split(|byte| *byte == b'\n')
        .any(|found| found.trim_ascii_end().ends_with(line.as_bytes()))
}

/// The keys of one file: binary, or any number of armoured blocks one after another.
fn read_keys(path: &Path, what: &dyn ToString) -> Result<Vec<SignedPublicKey>, ImageError> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).at("read", path)?;
    let read = file.take(KEYRING_LIMIT + 1).read_to_end(&mut bytes);
    read.at("read", path)?;
    let refuse = |reason: &str| {
        let path = path.to_owned();
        let reason = reason.to_owned();
        ImageError::Verify {
            what: what.to_string(),
            source: Box::new(VerifyError::Keyring { path, reason }),
        }
    };
    if bytes.len() as u64 > KEYRING_LIMIT {
        return Err(refuse("it is too large"));
    }
    match parse_keys(&bytes) {
        Ok(keys) => Ok(keys),
        // A keyring that nobody has put a key into yet.
        Err(_) if bytes.is_empty() => Ok(Vec::new()),
        Err(reason) => Err(refuse(reason)),
    }
}

/// The keys among `bytes`, or why there are none.
fn parse_keys(bytes: &[u8]) -> Result<Vec<SignedPublicKey>, &'static str> {
    if bytes.get(8..12) == Some(b"KBXf") {
        return Err("it is a keybox, which GnuPG alone reads");
    }
    let mut keys = Vec::new();
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        keys.extend(keys_of(bytes));
    } else {
        let text = String::from_utf8_lossy(bytes);
        for block in text.split(ARMOUR).skip(1).take(MOST_KEYS) {
            let block = format!("{ARMOUR}{block}");
            keys.extend(keys_of(BufReader::new(Dearmor::new(block.as_bytes()))));
        }
    }
    if keys.is_empty() {
        return Err("it holds no public key");
    }
    Ok(keys)
}

/// The keys among packets. What cannot be read takes nothing from the others, as every part of a key is bound by a
/// signature; what GnuPG noted in a keyring of its own (trust packets) is none of a key's parts.
fn keys_of(packets: impl BufRead) -> Vec<SignedPublicKey> {
    let packets = PacketParser::new(packets)
        .take(MOST_PACKETS)
        .filter(|packet| {
            packet
                .as_ref()
                .is_ok_and(|packet| packet.tag() != Tag::Trust)
        });
    let keys = SignedPublicKey::from_packets(packets.peekable());
    keys.take(MOST_KEYS).flatten().collect()
}
