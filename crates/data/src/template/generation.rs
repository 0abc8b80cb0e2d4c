//! `{% generation %}` … `{% endgeneration %}`, with which templates mark the assistant's words for transformers.
//!
//! transformers renders the block's content as it stands, in a scope of its own. That is what Jinja's `with` does,
//! so the tags are renamed to it, in place: marks that trim blanks and the numbers of lines stay.

/// The tags, and what does the same.
const RENAMED: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// What opens a tag.
const OPEN: &str = "{%";

/// `source` without the marks.
pub(super) fn without_marks(source: &str) -> String {
    let mut tags = source.split(OPEN);
    let mut text = tags.next().unwrap_or_default().to_owned();
    for tag in tags {
        text.push_str(OPEN);
        text.push_str(&renamed(tag).unwrap_or_else(|| tag.to_owned()));
    }
    text
}

/// A tag, from after `{%`, and the text after it, if it is one of the tags.
fn renamed(tag: &str) -> Option<String> {
    let content = tag.trim_start_matches(['-', '+']).trim_start();
    let before = tag.strip_suffix(content)?;
    RENAMED.into_iter().find_map(|(mark, name)| {
        let after = content.strip_prefix(mark)?;
        let ends = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        ends.then(|| format!("{before}{name}{after}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tags_are_renamed() {
        assert_eq!(without_marks("a{%- generation -%}b{% endgeneration%}c"), "a{%- with -%}b{% endwith%}c");
        for other in ["{% if generation %}", "{% generation_x %}", "{{ generation }}", "{%", "generation %}"]
        {
            assert_eq!(without_marks(other), other);
        }
    }
}
