() => {
  // names for screen readers, and arrow keys: Gradio gives each radio button a group of its own
  for (const group of document.querySelectorAll("fieldset")) {
    const name = group.querySelector("[data-testid=block-info]").textContent.trim();
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", name);
    group.addEventListener("focusin", () => group.querySelectorAll("input").forEach(input => input.name = name));
  }
  for (const id of ["made", "tagged", "edited", "compared"])
    document.getElementById(id)?.setAttribute("aria-live", "polite");
}
