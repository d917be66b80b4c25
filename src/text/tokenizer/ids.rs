//! Where ids go: they are counted, or kept.

/// A part that merging ended in: its token, or `NONE`, and the bytes of text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub id: u32,
    pub len: u32,
}

/// The ids of a text as they come.
pub struct Ids<'a> {
    kept: Option<&'a mut Vec<u32>>,
    pub n: usize,
    pub last: Option<u32>,
}

impl<'a> Ids<'a> {
    pub fn counted() -> Self {
        Ids { kept: None, n: 0, last: None }
    }

    pub fn kept(list: &'a mut Vec<u32>) -> Self {
        Ids { kept: Some(list), n: 0, last: None }
    }

    pub fn push(&mut self, id: u32) {
        self.n += 1;
        self.last = Some(id);
        if let Some(list) = &mut self.kept {
            list.push(id);
        }
    }
}
