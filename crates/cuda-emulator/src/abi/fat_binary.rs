//! Fat binaries, as nvcc makes them: a header, then code for several kinds of GPU, each behind a header of its own.
//!
//! Their layout is not documented; this is what those of CUDA 13 look like, in little-endian numbers:
//! a header `u32 magic, u16 version, u16 bytes of this header, u64 bytes after it`, then entries of
//! `u16 kind (1: PTX), u16, u32 bytes of this header, u64 bytes of code after it, u32 bytes of compressed code or 0, …`.

/// The first bytes of a fat binary.
pub const MAGIC: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
/// Bytes of the first header.
pub const HEADER: usize = 16;

const PTX: usize = 1;

/// Bytes of all, from the first header. More than memory can hold is nothing.
pub fn size(header: &[u8; HEADER]) -> usize {
    let size = number(header, 6, 2).saturating_add(number(header, 8, 8));
    if isize::try_from(size).is_ok() { size } else { 0 }
}

/// The PTX in a whole fat binary, if there is some that is not compressed.
pub fn ptx(image: &[u8]) -> Option<&str> {
    let mut rest = image.get(number(image, 6, 2)..)?;
    while rest.len() >= 64 {
        let (header, code, compressed) = (number(rest, 4, 4), number(rest, 8, 8), number(rest, 16, 4));
        let end = header.checked_add(code).filter(|_| header >= 64)?;
        if number(rest, 0, 2) == PTX && compressed == 0 {
            // It is padded by zeros.
            let text = rest.get(header..end)?.split(|&byte| byte == 0).next()?;
            return std::str::from_utf8(text).ok();
        }
        rest = rest.get(end..)?;
    }
    None
}

/// The number in `bytes` bytes at `start`; 0 beyond the end.
fn number(from: &[u8], start: usize, bytes: usize) -> usize {
    let bytes = from.get(start..start + bytes).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry: 64 bytes of header, then code.
    fn entry(kind: u8, compressed: u8, code: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 64];
        (entry[0], entry[4], entry[8], entry[16]) = (kind, 64, code.len() as u8, compressed);
        entry.extend_from_slice(code);
        entry
    }

    fn fat(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut fat = [&MAGIC[..], &[1, 0, 16, 0]].concat();
        fat.extend_from_slice(&(body.len() as u64).to_le_bytes());
        [fat, body].concat()
    }

    #[test]
    fn the_text_is_found_behind_machine_code() {
        let image =
            fat(&[entry(2, 0, b"\x7fELF"), entry(1, 3, b"\x01\x02\x03"), entry(1, 0, b".version 9.4\0\0")]);
        assert_eq!(ptx(&image), Some(".version 9.4"));
        assert_eq!(size(image[..HEADER].try_into().unwrap()), image.len());
    }

    #[test]
    fn without_text_or_cut_short_there_is_none() {
        assert_eq!(ptx(&fat(&[entry(2, 0, b"\x7fELF")])), None);
        let image = fat(&[entry(1, 0, b".version 9.4\0\0")]);
        for length in 0..image.len() {
            assert_eq!(ptx(&image[..length]), None, "{length} bytes");
        }
    }
}
