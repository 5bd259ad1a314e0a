//! `$(NAME)` in values, commands and arguments.

/// Expands `$(NAME)` by the kubelet's rules: `$$` is one `$`, and a name that is not set is passed to `missing` and
/// left as written.
pub(crate) fn expand<'a>(
    text: &str,
    lookup: impl Fn(&str) -> Option<&'a str>,
    mut missing: impl FnMut(&str),
) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    missing(name);
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_kubelet() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "B" => Some("$(A)"),
            "" => Some("empty"),
            _ => None,
        };
        for (text, wanted) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$", "$$"),
            ("$(B)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$()", "empty"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, lookup, |_| {}), wanted, "{text}");
        }
    }

    #[test]
    fn reports_missing_names() {
        let mut names = Vec::new();
        expand("$(X)/$(Y)/$$(Z)", |_| None, |name| names.push(name.to_owned()));
        assert_eq!(names, ["X", "Y"]);
    }
}
