//! What a registry wants to see before it answers: the `WWW-Authenticate` header.
//!
//! Source: RFC 9110, 11.6.1; Docker Registry "Token Authentication Specification".

/// One way to authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `basic`, `bearer`, in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter's value; its name does not care for case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.parameters.iter();
        found
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// All challenges of one header. What cannot be read ends the list.
    pub(super) fn parse(header: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || "-._~+/!#$%&'*^`|".contains(c)))
                .unwrap_or(rest.len());
            if end == 0 {
                return found;
            }
            let (word, after) = rest.split_at(end);
            let word = word.to_ascii_lowercase();
            let Some(value) = after.trim_start().strip_prefix('=') else {
                found.push(Self {
                    scheme: word,
                    parameters: Vec::new(),
                });
                rest = after;
                continue;
            };
            let (value, next) = read_value(value.trim_start());
            let Some(challenge) = found.last_mut() else {
                return found;
            };
            challenge.parameters.push((word, value));
            rest = next;
        }
    }
}

/// A word or a quoted text, and what follows it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_as_registries_send_them() {
        let challenge = |scheme: &str, parameters: &[(&str, &str)]| Challenge {
            scheme: scheme.to_owned(),
            parameters: parameters
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let bearer = challenge(
            "bearer",
            &[
                ("realm", "https://auth.docker.io/token"),
                ("service", "registry.docker.io"),
                ("scope", "repository:library/debian:pull,push"),
            ],
        );
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#;
        let table: [(&str, Vec<Challenge>); 9] = [
            (hub, vec![bearer]),
            (
                r#"Basic realm="x y""#,
                vec![challenge("basic", &[("realm", "x y")])],
            ),
            ("BASIC", vec![challenge("basic", &[])]),
            (
                r#"Basic realm="a", Bearer realm = "b" , service=c"#,
                vec![
                    challenge("basic", &[("realm", "a")]),
                    challenge("bearer", &[("realm", "b"), ("service", "c")]),
                ],
            ),
            (
                r#"Bearer realm="a\"b\\c""#,
                vec![challenge("bearer", &[("realm", "a\"b\\c")])],
            ),
            (
                r#"Bearer realm="open"#,
                vec![challenge("bearer", &[("realm", "open")])],
            ),
            ("", vec![]),
            ("realm=x", vec![]),
            ("\"", vec![]),
        ];
        for (text, expected) in table {
            assert_eq!(Challenge::parse(text), expected, "{text}");
        }
        assert_eq!(
            Challenge::parse(hub)[0].get("service"),
            Some("registry.docker.io")
        );
    }
}
