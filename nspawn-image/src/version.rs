//! Which of two labels is the newer version, as systemd orders them.

use std::cmp::Ordering;

/// Compares two labels. Source: UAPI Group, Version Format Specification, "Comparison".
pub(crate) fn compare_versions(left: &str, right: &str) -> Ordering {
    let mut a = left.as_bytes();
    let mut b = right.as_bytes();
    loop {
        let skip = |text: &[u8]| {
            text.iter()
                .position(|c| c.is_ascii_alphanumeric() || b"-~^.".contains(c))
                .unwrap_or(text.len())
        };
        a = &a[skip(a)..];
        b = &b[skip(b)..];
        // A tilde sorts before everything, even before the end.
        for separator in *b"~-^." {
            match (a.first() == Some(&separator), b.first() == Some(&separator)) {
                (true, true) => (a, b) = (&a[1..], &b[1..]),
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
            let ended = a.is_empty() || b.is_empty();
            if separator == b'~' && ended && a.first() != Some(&b'~') && b.first() != Some(&b'~') {
                return b.is_empty().cmp(&a.is_empty());
            }
        }
        let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
        let letters = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_alphabetic()).count();
        let order = if digits(a) > 0 || digits(b) > 0 {
            let (number_a, rest_a) = a.split_at(digits(a));
            let (number_b, rest_b) = b.split_at(digits(b));
            (a, b) = (rest_a, rest_b);
            compare_numbers(number_a, number_b)
        } else {
            let (word_a, rest_a) = a.split_at(letters(a));
            let (word_b, rest_b) = b.split_at(letters(b));
            (a, b) = (rest_a, rest_b);
            word_a.cmp(word_b)
        };
        if order.is_ne() {
            return order;
        }
    }
}

fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |number: &[u8]| {
        number
            .iter()
            .position(|c| *c != b'0')
            .unwrap_or(number.len())
    };
    let (a_digits, b_digits) = (&a[strip(a)..], &b[strip(b)..]);
    // No number at all is older than the number zero.
    a_digits
        .len()
        .cmp(&b_digits.len())
        .then(a_digits.cmp(b_digits))
        .then((!a.is_empty()).cmp(&!b.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_old_to_new() {
        // Source: the ordering examples of the specification.
        let ascending = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (older, left) in ascending.iter().enumerate() {
            for (newer, right) in ascending.iter().enumerate() {
                assert_eq!(
                    compare_versions(left, right),
                    older.cmp(&newer),
                    "{left} {right}"
                );
            }
        }
        for (left, right, order) in [
            ("", "", Ordering::Equal),
            ("", "a", Ordering::Less),
            ("~", "", Ordering::Less),
            ("root_9", "root_10", Ordering::Less),
            ("1_", "1", Ordering::Equal),
            ("007", "7", Ordering::Equal),
        ] {
            assert_eq!(compare_versions(left, right), order, "{left:?} {right:?}");
        }
    }
}
