//! `nspawn-peers CRATE IMAGE RAW`: converts a qcow2 image by reading it from front to back with the crate `qcow2-rs` or
//! `qcow`, in pieces of 8 MiB.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::Path;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;

/// Bytes read at once; what the converter that comes with `qcow2-rs` takes.
const PIECE: usize = 8 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, image, raw] = &args[..] else {
        return Err("usage: nspawn-peers qcow2-rs|qcow IMAGE RAW".into());
    };
    match name.as_str() {
        "qcow2-rs" => by_qcow2_rs(Path::new(image), Path::new(raw)),
        "qcow" => by_qcow(Path::new(image), Path::new(raw)),
        other => Err(format!("no peer {other:?}").into()),
    }
}

fn by_qcow2_rs(image: &Path, raw: &Path) -> Result<(), Box<dyn Error>> {
    let mut output = File::create(raw)?;
    let params = Qcow2DevParams::new(9, None, None, true, false);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let device = qcow2_rs::utils::qcow2_setup_dev_tokio(image, &params)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let size = device.info.virtual_size();
        let mut buffer = Qcow2IoBuf::<u8>::new(PIECE);
        let mut at = 0;
        while at < size {
            let length = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
            let count = device
                .read_at(&mut buffer[..length], at)
                .await
                .map_err(|error| format!("{error:?}"))?;
            if count == 0 {
                return Err(format!("nothing read at byte {at}").into());
            }
            output.write_all(&buffer[..count])?;
            at += count as u64;
        }
        Ok(())
    })
}

fn by_qcow(image: &Path, raw: &Path) -> Result<(), Box<dyn Error>> {
    let mut output = File::create(raw)?;
    let qcow = qcow::open(image)?.unwrap_qcow2();
    let mut left = qcow.header.size;
    let mut file = BufReader::new(File::open(image)?);
    let mut reader = qcow.reader(&mut file);
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        reader.read_exact(&mut buffer[..length])?;
        output.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(())
}
