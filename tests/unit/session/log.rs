//! Tests of `session::log`.

use super::*;

#[test]
fn a_prompt_is_compared_with_all_that_was_taken_in() {
    let mut log = TokenLog::new(4);
    assert_eq!(log.common(&[1, 2]), Common { n: 0, is_all: true });
    log.push(&[1, 2, 3]);
    assert_eq!(log.common(&[1, 2]), Common { n: 2, is_all: false });
    assert_eq!(log.common(&[1, 2, 3]), Common { n: 3, is_all: true });
    assert_eq!(log.common(&[1, 2, 3, 4]), Common { n: 3, is_all: true });
    assert_eq!(log.common(&[1, 9, 3, 4]), Common { n: 1, is_all: false });
    // Beyond what is kept as it is the hash decides.
    log.push(&[4, 5]);
    log.push(&[6]);
    assert!(!log.is_whole());
    assert_eq!(log.common(&[1, 2, 3, 4, 5, 6, 7]), Common { n: 4, is_all: true });
    assert_eq!(log.common(&[1, 2, 3, 4, 5, 7, 7]), Common { n: 4, is_all: false });
    assert_eq!(log.common(&[1, 2, 3, 4, 5]), Common { n: 4, is_all: false });
    log.truncate(2);
    assert_eq!(log.common(&[1, 2, 8]), Common { n: 2, is_all: true });
    log.push(&[8, 9, 10]);
    assert_eq!(log.common(&[1, 2, 8, 9, 10]), Common { n: 4, is_all: true });
    log.clear();
    assert_eq!((log.n(), log.tokens()), (0, &[][..]));
}
