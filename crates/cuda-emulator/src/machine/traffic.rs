//! How well a warp's accesses fit the hardware: sectors of global memory, banks of shared memory.

use super::registers::LANES;

/// Bytes of a sector, the unit of traffic between the caches and DRAM.
const SECTOR: u64 = 32;
const BANKS: usize = 32;

/// Sectors that the accesses of one instruction touch.
pub(super) fn sectors(addresses: &[u64], size: usize) -> u64 {
    let mut touched = [0_u64; 2 * LANES];
    let mut count = 0;
    for address in addresses {
        for sector in [address / SECTOR, (address + size as u64 - 1) / SECTOR] {
            let repeated = count > 0 && touched[count - 1] == sector;
            if !repeated && count < touched.len() {
                touched[count] = sector;
                count += 1;
            }
        }
    }
    let touched = &mut touched[..count];
    if !touched.is_sorted() {
        touched.sort_unstable();
    }
    1 + touched.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64 - u64::from(touched.is_empty())
}

/// Passes over the banks beyond the least number for this size: a bank serves one word at a time, and wide accesses
/// go by halves or quarters of a warp.
pub(super) fn bank_conflicts(addresses: &[u64], size: usize) -> u64 {
    let lanes = LANES * 4 / size.max(4);
    addresses.chunks(lanes).map(|phase| passes(phase, size).saturating_sub(1)).sum()
}

fn passes(addresses: &[u64], size: usize) -> u64 {
    let mut words = [0_u64; BANKS];
    let mut count = 0;
    for address in addresses {
        for word in address / 4..(address + size as u64).div_ceil(4) {
            if count < words.len() && !(count > 0 && words[count - 1] == word) {
                words[count] = word;
                count += 1;
            }
        }
    }
    let words = &mut words[..count];
    words.sort_unstable();
    let mut by_bank = [0_u64; BANKS];
    let mut last = None;
    for word in words.iter() {
        if last != Some(*word) {
            by_bank[*word as usize % BANKS] += 1;
        }
        last = Some(*word);
    }
    by_bank.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_words_fill_whole_sectors_and_strided_ones_waste_them() {
        let contiguous: Vec<u64> = (0..32).map(|lane| 4096 + lane * 4).collect();
        let strided: Vec<u64> = (0..32).map(|lane| 4096 + lane * 128).collect();
        assert_eq!(sectors(&contiguous, 4), 4);
        assert_eq!(sectors(&strided, 4), 32);
        assert_eq!(sectors(&[4096 + 30], 4), 2);
        assert_eq!(sectors(&[], 4), 0);
    }

    #[test]
    fn a_column_of_32_words_takes_32_passes_and_padding_removes_them() {
        let column: Vec<u64> = (0..32).map(|lane| lane * 128).collect();
        let padded: Vec<u64> = (0..32).map(|lane| lane * 132).collect();
        let broadcast = [64_u64; 32];
        let vectors: Vec<u64> = (0..32).map(|lane| lane * 16).collect();
        assert_eq!(bank_conflicts(&column, 4), 31);
        assert_eq!(bank_conflicts(&padded, 4), 0);
        assert_eq!(bank_conflicts(&broadcast, 4), 0);
        assert_eq!(bank_conflicts(&vectors, 16), 0);
    }
}
