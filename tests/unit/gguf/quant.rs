//! Tests of `gguf::quant`.

use super::*;

/// Random blocks with finite scales and their expansion by the `gguf` package, see the script beside the file.
const GOLDEN: &str = include_str!("../../golden/quants.txt");

fn hex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0);
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits")).collect()
}

#[test]
fn expansion_equals_the_reference_bit_for_bit() {
    let mut seen = Vec::new();
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, elems, bytes_per_block, blocks, wanted] = fields[..] else { panic!("five fields: {line}") };
        let ty = *GgmlType::ALL.iter().find(|ty| ty.name() == name).expect(name);
        assert_eq!(
            (ty.block_elems().to_string(), ty.block_bytes().to_string()),
            (elems.into(), bytes_per_block.into()),
            "{name}"
        );
        if blocks == "-" {
            continue; // the table alone
        }
        seen.push(ty);
        let (blocks, wanted) = (hex(blocks), hex(wanted));
        let mut out = vec![f32::NAN; wanted.len() / 4];
        dequantize_row(ty, &blocks, &mut out).expect(name);
        for (i, (got, wanted)) in out.iter().zip(wanted.as_chunks::<4>().0).enumerate() {
            let wanted = f32::from_le_bytes(*wanted);
            assert_eq!(got.to_bits(), wanted.to_bits(), "{name} element {i}: {got} is not {wanted}");
        }
    }
    let known: Vec<GgmlType> = GgmlType::ALL.iter().copied().filter(|&ty| can_dequantize(ty)).collect();
    assert_eq!(seen, known, "each type that expands has a golden line, in the order of ids");
}

#[test]
fn ids_names_and_refusals() {
    for &ty in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
    }
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 142, 143, u32::MAX] {
        assert_eq!(GgmlType::from_id(id), None, "{id}");
    }
    let refused = dequantize_row(GgmlType::IQ1_S, &[0; 50], &mut [0.0; 256]).expect_err("no expansion");
    assert!(refused.to_string().contains("IQ1_S"));
    assert_eq!(dequantize_row(GgmlType::Q4_K, &[], &mut []), Ok(()));
}

/// FNV-1a over the bytes of the grids and of the signs as the `gguf` package (0.19) expands them: `IQ2_XXS.grid` and so on,
/// `IQ2_XXS.ksigns`. The golden blocks meet only some of the indices.
#[test]
fn grids_and_signs_are_those_of_the_reference() {
    let fnv = |bytes: &mut dyn Iterator<Item = u8>| {
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let eights = |grid: &[u64]| fnv(&mut grid.iter().flat_map(|x| x.to_le_bytes()));
    let fours = |grid: &[u32]| fnv(&mut grid.iter().flat_map(|x| x.to_le_bytes()));
    assert_eq!(eights(&grids::IQ2_XXS), 0xbb4e_e025_b5ac_6e8e);
    assert_eq!(eights(&grids::IQ2_XS), 0xc9b1_ee61_e799_09bd);
    assert_eq!(eights(&grids::IQ2_S), 0x123e_dd38_a3b6_2b90);
    assert_eq!(fours(&grids::IQ3_XXS), 0xdfa5_dc83_d6a1_55d5);
    assert_eq!(fours(&grids::IQ3_S), 0xfa37_020c_25b4_4829);
    assert_eq!(fnv(&mut (0..128).map(grids::even_signs)), 0xf19b_a8f8_c329_2ba5);
}
