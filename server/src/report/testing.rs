//! What holds of every page.

/// A name that tries to be more.
pub(crate) const MARKUP: &str = "<b a=\"1\">&'";

/// Elements are closed in the order in which they are opened.
pub(crate) fn assert_nested(html: &str) {
    let mut open = Vec::new();
    for tag in html.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None if tag.ends_with('/') || ["!doctype", "meta"].contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// A page refers to nothing outside of it.
pub(crate) fn assert_alone(html: &str) {
    for foreign in [
        "http:", "https:", "//", "src=", "<script", "<link", "@import",
    ] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert!(html.replace("url(#", "").matches("url(").next().is_none());
}

/// Figures describe themselves, and have names of their own. Says how many there are.
pub(crate) fn assert_described(html: &str) -> usize {
    let figures = html.matches("<svg").count();
    assert_eq!(html.matches("<title id=").count(), figures);
    assert_eq!(html.matches("<desc id=").count(), figures);
    let mut ids: Vec<&str> = html.split(" id=\"").skip(1).collect();
    ids.iter_mut()
        .for_each(|id| *id = id.split('"').next().unwrap());
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    figures
}
