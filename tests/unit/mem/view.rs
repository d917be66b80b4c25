use super::*;
use std::os::unix::fs::FileExt;

fn file() -> File {
    let path = std::env::temp_dir().join(format!("lowkey-view-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(path).expect("it is there");
    file
}

#[test]
fn what_is_written_is_seen_without_a_copy() {
    let file = file();
    let view = View::of(&file, 1 << 20).expect("room");
    for (at, bytes) in [(70_000, b"first"), (70_000, b"then!"), (500_000, b"later")] {
        file.write_all_at(bytes, at).expect("a disk");
        let mut seen = Vec::new();
        assert!(view.see(at, 5, &mut |part| seen = part.to_vec()));
        assert_eq!(seen, bytes);
    }
    assert!(!view.see((1 << 20) - 4, 5, &mut |_| panic!("beyond the end")));
    assert!(!view.see(u64::MAX, 5, &mut |_| panic!("beyond all")));
}

#[test]
fn a_page_that_is_gone_breaks_the_view_and_not_the_process() {
    let (file, other) = (file(), file());
    let [view, whole] = [&file, &other].map(|file| {
        file.write_all_at(&[7; 300_000], 0).expect("a disk");
        View::of(file, 300_000).expect("room")
    });
    assert!(view.see(200_000, 3, &mut |part| assert_eq!(part, [7; 3])));
    file.set_len(100_000).expect("a disk");
    // Other threads meet the same page.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(!view.see(200_000, 100_000, &mut |part| assert!(part.iter().all(|&x| x == 0)))));
        }
    });
    assert!(!view.see(0, 3, &mut |_| panic!("it stays broken")));
    assert!(whole.see(0, 300_000, &mut |part| assert!(part.iter().all(|&x| x == 7))), "the other is whole");
    // Its place is another's now.
    drop(view);
    let again = View::of(&other, 300_000).expect("room");
    assert!(again.see(299_999, 1, &mut |part| assert_eq!(part, [7])));
}
