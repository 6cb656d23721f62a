//! [`Platform`]: what machine an image is for, and which of several fits this one best.

use std::fmt;

use serde::Deserialize;

/// Operating system, architecture and variant, in the words of the Go toolchain. Source: OCI image-spec, image-index.md.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[non_exhaustive]
pub struct Platform {
    /// `linux` is the one that can be booted here.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v8` of `arm64`, `v7` of `arm`, `v3` of `amd64`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine this library was built for.
    pub fn native() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            // riscv64 and s390x are called the same.
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `self` runs on `machine`; `None` where it does not, higher is better.
    pub(crate) fn fit(&self, machine: &Self) -> Option<u32> {
        if self.os != machine.os || self.architecture != machine.architecture {
            return None;
        }
        // A variant is a level of the instruction set: one that is higher than the machine's does not run.
        let lowest = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let level = |variant: &Option<String>| match variant.as_deref() {
            None | Some("") => Some(lowest),
            Some(text) => text.strip_prefix('v')?.split('.').next()?.parse().ok(),
        };
        let (own, machine): (u32, u32) = (level(&self.variant)?, level(&machine.variant)?);
        (own <= machine).then_some(own)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    #[test]
    fn the_best_that_runs_here_is_taken() {
        let table: [(&str, &[&str], Option<&str>); 10] = [
            (
                "linux/amd64",
                &["linux/arm64", "linux/amd64"],
                Some("linux/amd64"),
            ),
            (
                "linux/amd64",
                &["linux/amd64/v3", "linux/amd64"],
                Some("linux/amd64"),
            ),
            ("linux/amd64", &["linux/amd64/v1"], Some("linux/amd64/v1")),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64", &["windows/amd64"], None),
            (
                "linux/arm64/v8",
                &["linux/arm/v7", "linux/arm64"],
                Some("linux/arm64"),
            ),
            (
                "linux/arm64/v8",
                &["linux/arm64/v9", "linux/arm64/v8"],
                Some("linux/arm64/v8"),
            ),
            (
                "linux/arm/v7",
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
                Some("linux/arm/v6"),
            ),
            ("linux/riscv64", &["linux/riscv64"], Some("linux/riscv64")),
            ("linux/amd64", &["linux/amd64/strange"], None),
        ];
        for (machine, offered, expected) in table {
            let machine = platform(machine);
            let best = offered
                .iter()
                .filter_map(|text| Some((platform(text).fit(&machine)?, *text)))
                .max_by_key(|(fit, _)| *fit);
            assert_eq!(best.map(|(_, text)| text), expected, "{machine}");
        }
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
        assert!(Platform::native().fit(&Platform::native()).is_some());
    }
}
