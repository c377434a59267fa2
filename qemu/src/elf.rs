//! The little that must be known of an ELF file: whether it needs a dynamic linker.

/// Program header type of the interpreter's path (System V ABI, chapter 5).
const PT_INTERP: u32 = 3;

/// Whether these are the bytes of a 64-bit little-endian ELF program that runs without a dynamic
/// linker, i.e. has no `PT_INTERP`. Anything else is `false`.
#[must_use]
pub fn is_static_program(bytes: &[u8]) -> bool {
    program_header_types(bytes).is_some_and(|types| !types.contains(&PT_INTERP))
}

fn program_header_types(bytes: &[u8]) -> Option<Vec<u32>> {
    // EI_CLASS 2 is 64 bits, EI_DATA 1 is little-endian.
    if bytes.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let half = |at: usize| {
        bytes
            .get(at..)?
            .first_chunk::<2>()
            .map(|field| usize::from(u16::from_le_bytes(*field)))
    };
    let offset = u64::from_le_bytes(*bytes.get(32..)?.first_chunk::<8>()?);
    let (offset, size, count) = (usize::try_from(offset).ok()?, half(54)?, half(56)?);
    (0..count)
        .map(|index| {
            let start = offset.checked_add(size.checked_mul(index)?)?;
            bytes
                .get(start..)?
                .first_chunk::<4>()
                .map(|field| u32::from_le_bytes(*field))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_has_a_dynamic_linker_and_noise_is_no_program() {
        let test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(program_header_types(&test).unwrap().contains(&PT_INTERP));
        assert!(!is_static_program(&test));
        assert!(!is_static_program(b"#!/bin/sh\n"));
        assert!(!is_static_program(&test[..60]));
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        assert!(
            is_static_program(&header),
            "no program headers, no interpreter"
        );
        header[56] = 1;
        header[32] = 64;
        assert!(!is_static_program(&header), "header points behind the end");
    }
}
