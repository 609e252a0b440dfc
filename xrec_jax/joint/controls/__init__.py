"""Controls of joint training: what they are (`registry`), and how they are trained (`systems`)."""
