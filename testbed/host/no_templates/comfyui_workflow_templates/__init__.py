"""Stands in for ComfyUI's package of this name, which is large: no templates but the extensions'.

Without a package of this name the host writes a red box into its log, and the browser's template
dialog opens empty. The host hands out the files in templates/.
"""
