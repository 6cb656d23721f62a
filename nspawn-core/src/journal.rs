//! The journal of a machine's units, read by the machine's own journalctl.
//!
//! Source: systemd docs/JOURNAL_EXPORT_FORMATS: an entry is `FIELD=value` lines, or `FIELD`, a little-endian
//! 64-bit length and that many bytes for values that hold a line break; an empty line ends it.

use std::io::{self, BufRead, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};

use crate::error::{MachineError, SystemContext as _};
use crate::machine::Machine;
use crate::name::UnitName;

/// Largest value that is read, in bytes; systemd cuts a line of output at 48 KiB by default.
const VALUE_MAX: u64 = 16 << 20;

/// One entry of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalEntry {
    /// Where it stands, to go on reading after it.
    pub cursor: String,
    /// The unit whose process wrote it.
    pub unit: String,
    /// The text, as the process wrote it.
    pub message: Vec<u8>,
    /// The unit it is about, where systemd wrote it.
    about: String,
    /// What the writer calls itself.
    identifier: String,
}

impl JournalEntry {
    /// Whether systemd wrote it in the unit's own process, before it became the unit's program: such as why the
    /// program cannot be run. The process is named after the program then, in parentheses.
    fn is_systemds(&self) -> bool {
        !self.about.is_empty() && self.about == self.unit && self.identifier.starts_with('(')
    }
}

/// The entries that processes of some units wrote.
#[derive(Debug)]
pub struct Journal {
    child: Child,
    reader: BufReader<ChildStdout>,
}

impl Machine {
    /// Reads what the programs of `units` wrote since the boot, from after `cursor` on where one is given.
    ///
    /// With `follow`, waits for more until [`JournalCloser::close`] is called or the machine ends.
    ///
    /// # Errors
    ///
    /// [`MachineError::Exec`] where the machine has no journalctl.
    pub fn journal(
        &self,
        units: &[UnitName],
        cursor: Option<&str>,
        follow: bool,
    ) -> Result<Journal, MachineError> {
        let mut args = vec![
            "--quiet".to_owned(),
            "--no-pager".into(),
            "--boot".into(),
            "--output=export".into(),
            "--lines=all".into(),
            "--output-fields=MESSAGE,_SYSTEMD_UNIT,UNIT,SYSLOG_IDENTIFIER".into(),
        ];
        if follow {
            args.push("--follow".into());
        }
        args.extend(cursor.map(|cursor| format!("--after-cursor={cursor}")));
        // several matches of one field are alternatives
        args.extend(units.iter().map(|unit| format!("_SYSTEMD_UNIT={unit}")));
        let command = self.command("journalctl").args(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child
            .stdout
            .take()
            .ok_or(io::Error::from(io::ErrorKind::BrokenPipe));
        Ok(Journal {
            reader: BufReader::new(stdout.doing("read the journal")?),
            child,
        })
    }

    /// Makes journald write down all it has received.
    ///
    /// # Errors
    ///
    /// [`MachineError::Exec`] where the machine has no journalctl.
    pub fn sync_journal(&self) -> Result<(), MachineError> {
        self.exec(["journalctl", "--sync"]).map(drop)
    }

    /// The last `lines` lines of a unit's journal, with what systemd says of the unit.
    ///
    /// # Errors
    ///
    /// [`MachineError::Exec`] where the machine has no journalctl.
    pub fn journal_tail(&self, unit: &UnitName, lines: u32) -> Result<String, MachineError> {
        let lines = format!("--lines={lines}");
        let args = [
            "journalctl",
            "--quiet",
            "--no-pager",
            "--boot",
            "--output=short",
            &lines,
            "--unit",
            unit.as_str(),
        ];
        Ok(String::from_utf8_lossy(&self.exec(args)?.stdout).into_owned())
    }
}

impl Journal {
    /// A way to end a following reader from another thread.
    #[must_use]
    pub fn closer(&self) -> JournalCloser {
        JournalCloser {
            process: crate::process::ProcessId::of(self.child.id()),
        }
    }

    /// Reads the next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`MachineError::System`] where the stream is broken or no journal.
    pub fn next_entry(&mut self) -> Result<Option<JournalEntry>, MachineError> {
        loop {
            match read_entry(&mut self.reader).doing("read the journal")? {
                Some(entry) if entry.is_systemds() => {}
                other => return Ok(other),
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // asked rather than killed: the machine must not be left with a dead process that nobody waits for
        self.closer().close();
        let _ = self.child.wait();
    }
}

/// Ends a following [`Journal`]: what was read from the machine until then can still be taken.
#[derive(Clone, Copy, Debug)]
pub struct JournalCloser {
    process: Option<crate::process::ProcessId>,
}

impl JournalCloser {
    /// Ends it.
    pub fn close(&self) {
        if let Some(pidfd) = self.process.and_then(|process| process.open().ok()) {
            let _ = crate::process::send_signal(&pidfd, rustix::process::Signal::TERM);
        }
    }
}

/// Reads one entry; an unfinished one at the end of the stream is dropped.
fn read_entry(reader: &mut impl BufRead) -> io::Result<Option<JournalEntry>> {
    let mut entry = JournalEntry::default();
    let mut fields = 0_usize;
    loop {
        let mut line = Vec::new();
        let taken = reader
            .by_ref()
            .take(VALUE_MAX)
            .read_until(b'\n', &mut line)?;
        if taken == 0 || line.pop() != Some(b'\n') {
            return Ok(None);
        }
        if line.is_empty() {
            if fields > 0 {
                return Ok(Some(entry));
            }
            continue;
        }
        fields += 1;
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (line[..at].to_vec(), line[at + 1..].to_vec()),
            None => {
                let Some(value) = read_binary(reader)? else {
                    return Ok(None);
                };
                (line, value)
            }
        };
        let text = || String::from_utf8_lossy(&value).into_owned();
        match name.as_slice() {
            b"__CURSOR" => entry.cursor = text(),
            b"_SYSTEMD_UNIT" => entry.unit = text(),
            b"UNIT" => entry.about = text(),
            b"SYSLOG_IDENTIFIER" => entry.identifier = text(),
            b"MESSAGE" => entry.message = value,
            _ => {}
        }
    }
}

/// Reads a length, the value and its line break; `None` where the stream ends before.
fn read_binary(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    if let Err(error) = reader.read_exact(&mut length) {
        return if error.kind() == io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let length = u64::from_le_bytes(length);
    if length > VALUE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a value of {length} bytes"),
        ));
    }
    let mut value = Vec::new();
    reader.by_ref().take(length + 1).read_to_end(&mut value)?;
    Ok((value.pop() == Some(b'\n') && value.len() as u64 == length).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(mut bytes: &[u8]) -> Vec<JournalEntry> {
        std::iter::from_fn(|| read_entry(&mut bytes).unwrap()).collect()
    }

    #[test]
    fn text_and_binary_values_are_read() {
        let mut stream = b"__CURSOR=a\n_SYSTEMD_UNIT=web.service\nMESSAGE=one=1\n\n".to_vec();
        stream.extend(b"__CURSOR=b\nMESSAGE\n\x03\0\0\0\0\0\0\0x\ny\n\n");
        let read = entries(&stream);
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].cursor.as_str(), read[0].message.as_slice()),
            ("a", b"one=1".as_slice())
        );
        assert_eq!(
            (read[1].cursor.as_str(), read[1].message.as_slice()),
            ("b", b"x\ny".as_slice())
        );
    }

    #[test]
    fn a_cut_stream_ends_with_the_last_whole_entry() {
        let whole = b"__CURSOR=a\nMESSAGE\n\x03\0\0\0\0\0\0\0x\ny\n\n";
        for length in 0..whole.len() {
            assert_eq!(entries(&whole[..length]), [], "{length}");
        }
        let huge = b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffx";
        assert!(read_entry(&mut huge.as_slice()).is_err());
    }
}
