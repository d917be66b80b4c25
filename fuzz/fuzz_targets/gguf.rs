//! Any bytes as a GGUF file: either an error of one line, or a file of which everything can be read without a panic.
//!
//! The same walk as in tests/hostile_gguf.rs, with inputs that grow by coverage. Refuses nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowkey::gguf::quant::{can_dequantize, dequantize_row};
use lowkey::gguf::{Value, parse};

fuzz_target!(|bytes: &[u8]| {
    let index = match parse(bytes) {
        Ok(index) => index,
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line}");
            return;
        }
    };
    for (key, value) in index.metadata(bytes) {
        let _ = (value.to_u32(key), value.to_f32(key), value.to_bool(key), value.to_str(key));
        let _ = (value.to_strings(key).map(|v| v.iter().count()), value.to_i32s(key).map(Iterator::count));
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
        assert!(index.get(bytes, key).is_some());
    }
    for tensor in index.tensors() {
        let data = &bytes[tensor.offset as usize..][..tensor.n_bytes as usize];
        assert_eq!(data.len(), tensor.row_bytes() * tensor.n_rows());
        // A row at a time, as the engine does; the input's size bounds it, a block has at most 256 elements.
        if can_dequantize(tensor.ty) {
            let mut row = vec![0.0; tensor.row_len()];
            dequantize_row(tensor.ty, &data[..tensor.row_bytes()], &mut row).expect("a type that expands");
        }
    }
});
