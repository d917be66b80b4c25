//! Tests of `mem::arena`.

use super::*;

#[test]
fn carved_buffers_are_disjoint_aligned_and_zeroed() {
    let carve = |arena: &mut Arena| (arena.carve::<f32>(5), arena.carve::<u8>(1), arena.carve::<i8>(64));
    let (mut a, mut b, c) = Arena::fill(carve).unwrap();
    a.fill(f32::NAN);
    b[0] = 7;
    drop(a);
    assert_eq!((b[0], &c[..]), (7, &[0i8; 64][..]));
    assert_eq!((b.as_ptr() as usize % ALIGN, c.as_ptr() as usize % ALIGN), (0, 0));
}

#[test]
fn an_arena_that_measures_counts_by_part_and_gives_nothing() {
    let mut arena = Arena::measure();
    assert!(arena.carve::<f32>(17).is_empty());
    arena.begin_part("one");
    (0..2).for_each(|_| drop(arena.carve::<u8>(1)));
    arena.begin_part("none");
    assert_eq!((arena.used(), arena.parts()), (256, &[("one", 128), ("none", 0)][..]));
}

/// A plan of more than there are addresses is no smaller for it.
#[test]
fn what_no_machine_has_is_counted_as_all_there_is() {
    let mut arena = Arena::measure();
    arena.begin_part("all");
    (0..2).for_each(|_| drop(arena.carve::<f32>(usize::MAX / 2)));
    drop(arena.carve::<u8>(usize::MAX));
    assert!(arena.used() > isize::MAX as usize && arena.parts()[0].1 > isize::MAX as usize);
    assert!(Arena::fill(|arena| arena.carve::<f32>(usize::MAX)).is_err());
}

#[test]
#[should_panic(expected = "no room")]
fn carving_past_the_end_is_our_mistake() {
    Arena::take(64).unwrap().carve::<f32>(17);
}
