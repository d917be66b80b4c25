//! Tests of `gguf::cursor`.

use super::*;

#[test]
fn reads_stop_at_the_end_and_do_not_move() {
    let mut cur = Cursor::new(&[1, 0, 0, 0, 9]);
    assert_eq!(cur.u32(), Ok(1));
    assert_eq!(cur.u64(), Err(Short { at: 4, need: 8 }));
    assert_eq!(cur.take(u64::MAX), Err(Short { at: 4, need: u64::MAX }));
    assert_eq!((cur.at(), cur.left()), (4, 1));
    assert_eq!(cur.u8(), Ok(9));
    assert_eq!(cur.take(0), Ok(&[][..]));
}
