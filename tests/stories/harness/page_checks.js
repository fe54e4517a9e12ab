// Checks of the page as it is now, like those of accessibility checkers; evaluates to a list of what is wrong.
(() => {
  const wrong = [];
  const name = element => element.tagName.toLowerCase() + (element.id ? '#' + element.id : '') +
    (element.getAttribute('class') ? '.' + element.getAttribute('class').replaceAll(' ', '.') : '');
  const isShown = element => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });

  // Contrast of each text with the colour behind it (WCAG 1.4.3).
  const parse = colour => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([red, green, blue]) => {
    const linear = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
      if (colour[3] !== 0) wrong.push(name(at) + ' has a translucent background, so its contrast is unknown');
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  let texts = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(element) || !isShown(element)) continue;
    seen.add(element);
    texts += 1;
    const [one, other] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) wrong.push(`${name(element)} has a contrast of ${contrast.toFixed(2)}: ${element.textContent}`);
  }
  if (texts < 20) wrong.push(`only ${texts} texts were checked`);

  // Names of controls, drawings and regions.
  for (const control of document.querySelectorAll('input:not([type=hidden]), select, button, a, summary')) {
    const label = control.labels?.[0]?.textContent ?? control.getAttribute('aria-label') ?? control.textContent;
    if (isShown(control) && !label.trim()) wrong.push(name(control) + ' has no name');
  }
  for (const drawing of document.querySelectorAll('svg')) {
    const isHidden = drawing.closest('[aria-hidden=true]');
    if (!isHidden && !drawing.getAttribute('aria-label')) wrong.push('a drawing has no name');
  }
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption && !table.parentElement.getAttribute('aria-label')) wrong.push(name(table) + ' has no name');
    for (const heading of table.querySelectorAll('th')) {
      if (!heading.scope) wrong.push('a heading without scope: ' + heading.textContent);
    }
  }

  // The document.
  if (document.documentElement.lang !== 'en') wrong.push('the page has no language');
  if (!document.title) wrong.push('the page has no title');
  if (document.querySelectorAll('h1').length !== 1) wrong.push('the page needs one h1');
  if (document.querySelectorAll('main').length !== 1) wrong.push('the page needs one main');
  if (document.querySelectorAll('[aria-live], [role=alert], [role=status]').length !== 1) wrong.push('one live region');
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  if (new Set(ids).size !== ids.length) wrong.push('an id is used twice: ' + ids);
  const sorted = document.querySelectorAll('#modules > thead [aria-sort]');
  if (sorted.length !== 1) wrong.push(`${sorted.length} columns are sorted`);

  // No element is wider than the window, apart from those that scroll by themselves.
  const { scrollWidth, clientWidth } = document.documentElement;
  if (scrollWidth > clientWidth) wrong.push(`the page is ${scrollWidth} wide in a window of ${clientWidth}`);

  // Controls are large enough for a finger or a pointer (WCAG 2.5.8): 24 pixels, or as much space around them.
  const controls = 'button, select, input[type=search], label:has(input[type=checkbox])';
  for (const control of document.querySelectorAll(controls)) {
    const { height } = control.getBoundingClientRect();
    if (isShown(control) && height < 20) wrong.push(`${name(control)} is ${height} pixels high`);
  }
  return wrong;
})()
